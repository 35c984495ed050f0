"""What one training step is, by name."""

from facelt.methods.base import Embeddings, Inputs, Method, Progress, StepOutput, Stream
from facelt.methods.bbn import Bbn
from facelt.methods.classify import Classify
from facelt.methods.dynamic_meta import DynamicMeta
from facelt.methods.fslwf import Fslwf
from facelt.methods.fusion import Fusion
from facelt.methods.fusion_asm import FusionAsm
from facelt.methods.fusion_kt import FusionKt
from facelt.methods.fusion_llw import FusionLlw
from facelt.methods.independent import Independent
from facelt.methods.lfme import Lfme
from facelt.methods.lws import Lws
from facelt.methods.meta_model_net import MetaModelNet
from facelt.methods.model_regression import ModelRegression
from facelt.methods.ncm import Ncm
from facelt.methods.reslt import Reslt
from facelt.methods.ride import Ride
from facelt.methods.ride_router import RideRouter
from facelt.methods.tau_norm import TauNorm

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
