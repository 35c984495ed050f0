"""Typed configuration: schema and loading."""

from facelt.config.audit import AuditConfig
from facelt.config.data import CifarData, DataConfig, ListData, RecordData
from facelt.config.experts import IndependentConfig, RideConfig, RideRouterConfig
from facelt.config.loading import load_config
from facelt.config.losses import LossConfig, MetricLossConfig, WeightsConfig
from facelt.config.methods import ClassifyConfig, DynamicMetaConfig, MethodConfig
from facelt.config.on_trained import (
    FslwfConfig,
    FusionAsmConfig,
    FusionConfig,
    FusionKtConfig,
    FusionLlwConfig,
    LwsConfig,
    MetaModelNetConfig,
    ModelRegressionConfig,
    NcmConfig,
    TauNormConfig,
)
from facelt.config.shot_groups import BbnConfig, LfmeConfig, ResltConfig
from facelt.config.strict import Strict
from facelt.config.training import (
    MAY_CHANGE,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
    is_among,
    is_elsewhere,
)

__all__ = [
    "MAY_CHANGE",
    "AuditConfig",
    "BbnConfig",
    "CifarData",
    "ClassifyConfig",
    "DataConfig",
    "DynamicMetaConfig",
    "FslwfConfig",
    "FusionAsmConfig",
    "FusionConfig",
    "FusionKtConfig",
    "FusionLlwConfig",
    "IndependentConfig",
    "LfmeConfig",
    "ListData",
    "LossConfig",
    "LwsConfig",
    "MetaModelNetConfig",
    "MethodConfig",
    "MetricLossConfig",
    "ModelConfig",
    "ModelRegressionConfig",
    "NcmConfig",
    "OptimConfig",
    "RecordData",
    "ResltConfig",
    "RideConfig",
    "RideRouterConfig",
    "ScheduleConfig",
    "StageConfig",
    "Strict",
    "TauNormConfig",
    "TrainConfig",
    "WeightsConfig",
    "is_among",
    "is_elsewhere",
    "load_config",
]
