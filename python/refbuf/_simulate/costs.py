"""The model's costs, by name, and what they mean."""

MEANINGS = {
    "hit": "a look at an object's header in the cache",
    "plain": "a plain count on a line of one's own",
    "table": "a count in the thread's own table",
    "atomic": "an atomic count on a line of one's own",
    "swap": "the same by a load and a compare-and-swap, as CPython decrements",
    "transfer": "more for an atomic count, if the line comes from another cache",
    "transfer_ahead": "the same, where the thread's use before was of another line",
    "read_transfer": "more for a read or a plain count, if the line comes from another cache",
    "hold": "for so long a thread that counts on one line again and again keeps it",
    "fill": "more for an atomic count, if no private cache has the line",
    "read_fill": "more for a read or a plain count, if no private cache has the line",
    "handover": "from one holder of the GIL to the next",
}
NAMES = tuple(MEANINGS)
