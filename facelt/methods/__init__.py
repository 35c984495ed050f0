"""What one training step is, by name."""

from facelt.methods.base import Embeddings, Inputs, Method, Progress, StepOutput, Stream
from facelt.methods.bbn import Bbn
from facelt.methods.classify import Classify
from facelt.methods.decoupling import Lws, Ncm, TauNorm
from facelt.methods.few_shot import Fslwf, MetaModelNet, ModelRegression
from facelt.methods.fusion import Fusion, FusionAsm, FusionKt, FusionLlw
from facelt.methods.lfme import Lfme
from facelt.methods.multi_expert import Independent, Ride, RideRouter
from facelt.methods.oltr import DynamicMeta
from facelt.methods.reslt import Reslt

METHODS: dict[str, type[Method]] = {
    "classify": Classify,
    "dynamic_meta": DynamicMeta,
    "bbn": Bbn,
    "reslt": Reslt,
    "lfme": Lfme,
    "ride": Ride,
    "ride_router": RideRouter,
    "independent": Independent,
    "lws": Lws,
    "tau_norm": TauNorm,
    "ncm": Ncm,
    "fusion": Fusion,
    "fusion_llw": FusionLlw,
    "fusion_asm": FusionAsm,
    "fusion_kt": FusionKt,
    "fslwf": Fslwf,
    "model_regression": ModelRegression,
    "meta_model_net": MetaModelNet,
}

__all__ = ["METHODS", "Embeddings", "Inputs", "Method", "Progress", "StepOutput", "Stream"]
