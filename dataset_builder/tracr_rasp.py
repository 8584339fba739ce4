"""The corpus as a builder of the datasets library: `TracrRasp(config_name="small").download_and_prepare()`.

The Hub takes no loading scripts: what is published is the Parquet that `corpus.build` writes, which `load_dataset`
reads with no code of ours. This class is for making it again on one's own machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.corpus import CONFIGS, SPLITS, build
from dataset_builder.rows import SCHEMA


class TracrRasp(datasets.ArrowBasedBuilder):
    """Builds what it was asked for under its cache folder, where a second call finds it."""

    BUILDER_CONFIGS = [
        datasets.BuilderConfig(name=name, version=datasets.Version("1.0.0"), description=f"{config.rows:,} programs")
        for name, config in CONFIGS.items()
    ]
    DEFAULT_CONFIG_NAME = "small"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="RASP programs and the transformers that Tracr compiles from them",
            features=datasets.Features.from_arrow_schema(SCHEMA),
            license="apache-2.0",
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        folder = Path(self._cache_dir_root) / "tracr-rasp-parquet"
        build(CONFIGS[self.config.name], folder)
        home = folder / self.config.name
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"paths": sorted(home.glob(f"{split}-*.parquet"))})
            for split in SPLITS
        ]

    def _generate_tables(self, paths: list[Path]) -> Iterator[tuple[str, pa.Table]]:
        for path in paths:
            with pq.ParquetFile(path) as file:
                for number, batch in enumerate(file.iter_batches(1000)):
                    yield f"{path.stem}-{number}", pa.Table.from_batches([batch])
