"""TraDe in transformers' own places: AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoProcessor and `pipeline`.

`import trade_hf` sees to it, and must stay cheap (transformers and torch take seconds). So each part is registered once
the module of transformers that it belongs to has been imported, by whomever, and no module of ours is half imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

TASK = "rasp-decompilation"


def _register_config(auto: ModuleType) -> None:
    from trade_hf.configuration_trade import TraDeConfig

    auto.AutoConfig.register(TraDeConfig.model_type, TraDeConfig)


def _register_models(auto: ModuleType) -> None:
    from trade_hf.configuration_trade import TraDeConfig
    from trade_hf.modeling_trade import TraDeForConditionalGeneration, TraDeModel

    auto.AutoModel.register(TraDeConfig, TraDeModel)
    auto.AutoModelForSeq2SeqLM.register(TraDeConfig, TraDeForConditionalGeneration)


def _register_processor(auto: ModuleType) -> None:
    from trade_hf.configuration_trade import TraDeConfig
    from trade_hf.processing_trade import TraDeProcessor

    auto.AutoProcessor.register(TraDeConfig, TraDeProcessor)


def _register_pipeline(pipelines: ModuleType) -> None:
    from trade_hf.modeling_trade import TraDeForConditionalGeneration
    from trade_hf.pipeline_rasp_decompilation import RaspDecompilationPipeline

    pipelines.PIPELINE_REGISTRY.register_pipeline(
        TASK, RaspDecompilationPipeline, pt_model=TraDeForConditionalGeneration, type="multimodal"
    )


REGISTRATIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.processing_auto": _register_processor,
    "transformers.pipelines": _register_pipeline,
}


class Registrar(MetaPathFinder):
    """Watches the imports of the modules of REGISTRATIONS and of our own; it finds them where they are."""

    def __init__(self) -> None:
        self.waiting = dict(REGISTRATIONS)
        self.under_way: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.waiting and not name.startswith("trade_hf."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _WatchedLoader(spec.loader, self)
        return spec

    def register(self) -> None:
        """Register what is imported and has not been; while a module of ours is half imported, it can wait."""
        if any(name.startswith("trade_hf.") for name in self.under_way):
            return
        for name in self.waiting.keys() & sys.modules.keys() - self.under_way:
            if name in self.waiting:  # the registration before may have imported what calls this again
                self.waiting.pop(name)(sys.modules[name])


class _WatchedLoader(Loader):
    """Loads as `loader` does, and says when it begins and ends."""

    def __init__(self, loader: Loader, registrar: Registrar) -> None:
        self.loader, self.registrar = loader, registrar

    def __getattr__(self, name: str) -> Any:  # get_code for `python -m`, get_source for tracebacks, …
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader
        self.registrar.under_way.add(module.__name__)
        try:
            self.loader.exec_module(module)
        finally:
            self.registrar.under_way.discard(module.__name__)
        self.registrar.register()


def register() -> None:
    """Register TraDe with transformers: now where transformers is imported, else when it is. Done once."""
    if not any(isinstance(finder, Registrar) for finder in sys.meta_path):
        registrar = Registrar()
        sys.meta_path.insert(0, registrar)
        registrar.register()
