"""The model's costs, by name, and what they mean."""

MEANINGS = {
    "hit": "a look at an object's header in the cache",
    "plain": "a plain count on a line of one's own",
    "table": "a count in the thread's own table",
    "surprise": "more, if a look in the table ends otherwise than the one before",
    "atomic": "an atomic count on a line of one's own",
    "swap": "the same by a load and a compare-and-swap, as CPython decrements, after another count there",
    "swap_apart": "the same, after uses of other lines",
    "transfer": "more for an atomic count, if the line comes from another cache",
    "transfer_ahead": "the same, for a line that could be asked for ahead: after uses of other lines, and if "
    "nobody has used this one for as long as a transfer takes",
    "read_transfer": "more for a read or a plain count, if the line comes from another cache",
    "hold": "for so long a thread that counts on one line again and again keeps it",
    "hold_looked": "the same, if each count looks at the line first, as CPython's does",
    "fill": "more for an atomic count, if no private cache has the line",
    "read_fill": "more for a read or a plain count, if no private cache has the line",
    "handover": "from one holder of the GIL to the next",
}
NAMES = tuple(MEANINGS)
