"""Aliases for the types of pyarrow, which has no annotations."""

from typing import Any, TypeAlias

ArrowTable: TypeAlias = Any  # pyarrow.Table
ArrowColumn: TypeAlias = Any  # pyarrow.Array or ChunkedArray
ArrowSchema: TypeAlias = Any  # pyarrow.Schema
ArrowType: TypeAlias = Any  # pyarrow.DataType
ParquetFile: TypeAlias = Any  # pyarrow.parquet.ParquetFile
