"""lm-evaluation-harness: a model that also hands out its hidden states, and a task that scores what they give away.

The harness's models answer in text; `invert_fast` is its `hf` model that answers one more kind of request. So a run may
have any task beside ours. The harness knows neither before this file is imported, so its command line is started here:

    python -m invert_fast.integrations.lm_eval run --model invert_fast \\
        --model_args pretrained=./my-model,layers=block:0+block:5+final_norm --tasks hidden_state_leakage
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..inverter import Inverter
from .leak import MEASURES, leak, listed, measures, texts_from
from .needs import LM_EVAL

LM_EVAL.check()
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.metrics import mean  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402
from lm_eval.api.task import Task, TaskConfig  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

NAME, REQUEST = "hidden_state_leakage", "hidden_state_leakage"
TASKS = Path(__file__).parent / "lm_eval_tasks"


@register_model("invert_fast")
class LeakyLM(HFLM):  # type: ignore[misc]
    """lm_eval's `hf` model, which also inverts its hidden states.

    layers: names or indices, with `+` between; store_dtype, noise, strategy: of the capture and the attack; everything
    else as `hf` takes it.
    """

    def __init__(
        self,
        pretrained: Any,
        layers: Any = "final_norm",
        store_dtype: str = "float32",
        noise: float = 0.0,
        strategy: str = "auto",
        **kwargs: Any,
    ):
        super().__init__(pretrained, **kwargs)
        self.layers, self._inverters = listed(layers), {}
        self._leak = partial(leak, store_dtype=store_dtype, noise=float(noise), strategy=strategy)

    def hidden_state_leakage(self, requests: Sequence[Instance]) -> list[dict[str, dict[str, float | str]]]:
        """For each text: layer → its measures, and `text`, what came back."""
        for layer in self.layers:
            if layer not in self._inverters:
                self._inverters[layer] = Inverter(self.model, self.tokenizer, layer)
        return [
            {layer: self._measured(self._inverters[layer], request.args[0]) for layer in self.layers}
            for request in requests
        ]

    def _measured(self, inverter: Inverter, text: str) -> dict[str, float | str]:
        one = self._leak(inverter, text)
        return {**measures(one), "text": one.text}


class Leakage(Task):  # type: ignore[misc]
    """How much of each text the states of each layer give away: `token_accuracy`, `exact_match` and the `certified`
    share, named `token_accuracy@block:5` and so on.

    texts: the texts; without them those of the file that the run's metadata name as `texts` (`--metadata
    '{"texts": "prompts.jsonl"}'`), else 36 sentences.
    """

    VERSION = 1

    def __init__(self, texts: Iterable[str] | None = None, config: Any = None, **kwargs: Any):
        self._texts = list(texts) if texts is not None else None
        self._layers: list[str] = []
        super().__init__()
        given = dict(config or {})
        self._config = TaskConfig(
            task=given.get("task", NAME), metadata=given.get("metadata"), output_type="loglikelihood", num_fewshot=0
        )

    def download(self, *args: Any, **kwargs: Any) -> None:
        """Texts are local."""

    def has_training_docs(self) -> bool:
        return False

    has_validation_docs = has_training_docs

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list[dict[str, str]]:
        if self._texts is None:
            self._texts = texts_from((self.config.metadata or {}).get("texts"))
        return [{"text": text} for text in self._texts]

    def doc_to_text(self, doc: dict[str, str]) -> str:
        return doc["text"]

    def doc_to_target(self, doc: dict[str, str]) -> str:
        """What an attacker would like to have."""
        return doc["text"]

    def fewshot_context(self, doc: dict[str, str], *args: Any, **kwargs: Any) -> str:
        """The text alone: nothing stands before it."""
        return doc["text"]

    def construct_requests(self, doc: dict[str, str], ctx: str, **kwargs: Any) -> Instance:
        metadata = kwargs.get("metadata", (None, None, None))
        return Instance(request_type=REQUEST, doc=doc, arguments=(ctx,), idx=0, metadata=metadata)  # type: ignore

    def process_results(self, doc: dict[str, str], results: Sequence[dict[str, dict[str, Any]]]) -> dict[str, float]:
        (found,) = results
        self._layers = [*found]
        return {f"{name}@{layer}": figures[name] for layer, figures in found.items() for name in MEASURES}

    def _metrics(self) -> list[str]:
        return [f"{name}@{layer}" for layer in self._layers for name in MEASURES]

    def aggregation(self) -> dict[str, Any]:
        return dict.fromkeys(self._metrics(), mean)

    def higher_is_better(self) -> dict[str, bool]:
        """Of a defence lower is: these are an attack's figures."""
        return dict.fromkeys(self._metrics(), True)


def main() -> None:
    """The harness's command line, with our model and task beside its own."""
    import sys

    from lm_eval.__main__ import cli_evaluate  # type: ignore[import-not-found]

    if "run" in sys.argv[1:2] and "--include_path" not in sys.argv:
        sys.argv += ["--include_path", str(TASKS)]
    cli_evaluate()


if __name__ == "__main__":
    main()
