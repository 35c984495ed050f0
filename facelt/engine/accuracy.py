"""Closed-set accuracy of a trained model, and nothing else of it."""

from facelt.data.bad_images import BadImageCount
from facelt.engine.data import open_data
from facelt.engine.evaluate import predict
from facelt.engine.handed_on import TrainedModel
from facelt.engine.model_evaluation import find_split
from facelt.engine.reading import Reading
from facelt.metrics.accuracy import ShotAccuracy, shot_accuracy


def accuracy_of(model: TrainedModel, split: str, convention: str, *, batch: int, workers: int) -> ShotAccuracy:
    """Accuracy on a split of the data the model's configuration names. Raises UserError where there is none."""
    data = open_data(model.config.data, model.config.seed)
    device = next(model.method.parameters()).device
    reading = Reading(batch, workers, device, BadImageCount(model.config.data.max_bad_images))
    label_N, prediction_N = predict(model.method, find_split(data, split), data.preparation, reading)
    return shot_accuracy(data.train_counts, label_N, prediction_N, convention)
