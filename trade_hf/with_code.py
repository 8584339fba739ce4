"""Models, processors and pipelines that are saved with their code: the folder loads where trade-hf is not installed."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils import PushToHubMixin

# What `config.json` and `processor_config.json` say, as file.class.
AUTO_MAP = {
    "AutoConfig": "configuration_trade.TraDeConfig",
    "AutoModel": "modeling_trade.TraDeModel",
    "AutoModelForSeq2SeqLM": "modeling_trade.TraDeForConditionalGeneration",
}
PROCESSOR = {"AutoProcessor": "processing_trade.TraDeProcessor"}
CUSTOM_PIPELINES = {
    "rasp-decompilation": {
        "impl": "pipeline_rasp_decompilation.RaspDecompilationPipeline",
        "pt": ["AutoModelForSeq2SeqLM"],
        "type": "multimodal",
    }
}
CODE = ["*.py", "requirements.txt"]
HUB_OPTIONS = set(inspect.signature(PushToHubMixin.push_to_hub).parameters) - {"self", "repo_id", "max_shard_size"}


class SavedWithCode(PushToHubMixin):
    """Goes before the class of transformers whose `save_pretrained`, and so `push_to_hub`, it completes."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        with_code: bool = True,
        **kwargs: Any,
    ) -> Any:
        """What transformers gives; in the folder lies the code too.

        Args:
          push_to_hub, repo_id: upload all of it, by default to a repository of the folder's name.
          with_code: False for a folder that is only read where trade-hf is installed.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS & kwargs.keys()} if push_to_hub else {}
        saved = super().save_pretrained(save_directory, **kwargs)
        if with_code and kwargs.get("is_main_process", True):
            add_code(Path(save_directory), self)
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).name, **hub)
        return saved


def add_code(folder: Path, part: Any) -> None:
    """Put beside a saved model or processor the code that runs it, and say so in its JSON files.

    Where trade-hf is installed, it is written by `remote_code.py`. Elsewhere it is copied from where `part` was loaded
    from, a folder or a repository on the Hub; raises OSError if that is gone.
    """
    if __package__ == "trade_hf":
        import_module("trade_hf.remote_code").write_code(folder)
    else:
        origin = getattr(part, "name_or_path", "") or part.tokenizer.name_or_path
        source = Path(origin) if Path(origin).is_dir() else Path(snapshot_download(origin, allow_patterns=CODE))
        for path in (path for pattern in CODE for path in source.glob(pattern)):
            if path.parent.resolve() != folder.resolve():
                shutil.copyfile(path, folder / path.name)
    _update_json(folder / "config.json", auto_map=AUTO_MAP, custom_pipelines=CUSTOM_PIPELINES)
    _update_json(folder / "processor_config.json", auto_map=PROCESSOR)


def _update_json(path: Path, **entries: Any) -> None:
    if path.is_file():
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}, indent=2, sort_keys=True) + "\n")
