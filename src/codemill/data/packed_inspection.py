"""What training learns of packed rows: as `inspection.py` shows it of the files they were made of."""

from collections.abc import Iterator

import numpy as np

from codemill.chat.tokenizer import Tokenizer
from codemill.data.document_shard import learned_tokens
from codemill.data.inspection import Inspection, ShownDocument, stretches
from codemill.data.packed_directory import PackedDirectory
from codemill.data.packing import PADDING_DOCUMENT, Document, PackedRows
from codemill.errors import UsageError


def inspect_packed(
    directory: PackedDirectory, tokenizer: Tokenizer, limit: int = 3, row: int | None = None
) -> Inspection:
    """Read all rows and show the documents of the first `limit`, or of `row` alone, from 1.

    Raises CodemillError for rows that are not whole, UsageError for those of another tokenizer, or without such a row.
    """
    rows, info = directory.rows(tokenizer), directory.info
    if row is not None and row > len(rows):
        raise UsageError(f"--line {row}: there are {len(rows):,} rows")
    found = Inspection(rows.input_ids.shape[1], records=info.get("records", 0))
    found.nothing_to_learn = info.get("nothing_to_learn", 0)
    for number in range(len(rows)) if row is None else [row - 1]:
        for place, document in enumerate(_documents(rows, number), 1):
            found.lengths.append(len(document))
            found.learned.append(learned_tokens(document))
            if row is not None or number < limit:
                where = f"{directory.path}: row {number + 1}, document {place}"
                found.shown.append(ShownDocument(where, stretches(document, tokenizer)))
    return found


def _documents(rows: PackedRows, row: int) -> Iterator[Document]:
    ids, weights, owners = (array[row] for array in (rows.input_ids, rows.loss_weights, rows.document_ids))
    ends = np.cumsum(np.bincount(owners[owners != PADDING_DOCUMENT]))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield Document(ids[start:end], weights[start:end])
