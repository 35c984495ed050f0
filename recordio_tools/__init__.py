"""The InsightFace/MXNet RecordIO format without MXNet: read, write, sample, pack and verify."""
