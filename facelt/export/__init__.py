"""Export of trained models: ONNX and safetensors."""
