"""Labels in tables: what they may be, and how others are refused."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from image_files import load, numbered, png, write_table
from secateur.errors import DataError


class TestLabels:
    @pytest.mark.parametrize(
        ("values", "kind"), [(["cat", "dog"], "string"), ([0.0, 1.0], "double"), ([True, False], "bool")]
    )
    def test_other_types_are_named(self, tmp_path, values, kind):
        table = pa.table({"image": [png(numbered(i)) for i in range(20)], "label": values * 10})
        parquet.write_table(table, tmp_path / "train.parquet")
        with pytest.raises(DataError, match=f"column 'label' holds {kind}, and labels must be whole numbers"):
            load("hf:owner/name", tmp_path)

    def test_numbers_that_are_no_classes_are_refused(self, tmp_path):
        write_table(tmp_path / "train.parquet", range(20), labels=[0, 10**12] * 10)
        write_table(tmp_path / "test.parquet", range(20))
        with pytest.raises(DataError, match="'train' has label 1000000000000, which is no number of a class"):
            load("hf:owner/name", tmp_path)
