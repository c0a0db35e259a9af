"""Sequence classifiers of any architecture: transformers' own, or one in its manner where it has none."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification


def classifier_class(config: PreTrainedConfig) -> Any:
    """What to call `from_pretrained` of, for a sequence classifier of this configuration.

    An architecture that transformers knows as a causal language model alone (LFM2, Bamba, InternLM3 ...) gets its
    generic classifier: the same trunk under the same name, and a linear layer `score`.
    """
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if causal is None or type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return AutoModelForSequenceClassification
    family = next(kind for kind in causal.__mro__[1:] if issubclass(kind, PreTrainedModel))
    name = causal.__name__.replace("ForCausalLM", "ForSequenceClassification")
    return type(name, (GenericForSequenceClassification, family), {"base_model_prefix": family.base_model_prefix})


def fill_buffers(classifier: Any) -> None:
    """Give a classifier that was loaded the buffers of its trunk that no file holds.

    transformers builds the trunk of its generic classifier apart and takes it for initialised, so they would be
    whatever the memory held (Falcon-H1's multipliers). Weights that were loaded are left alone.
    """
    classifier._init_weights(getattr(classifier, classifier.base_model_prefix))


def new_classifier(config: PreTrainedConfig) -> PreTrainedModel:
    """A sequence classifier of an architecture of transformers', with random weights."""
    kind = classifier_class(config)
    classifier: PreTrainedModel
    classifier = kind.from_config(config) if kind is AutoModelForSequenceClassification else kind(config)
    return classifier
