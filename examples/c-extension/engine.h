/* The half of the index that knows nothing of Python: threads, a queue, and words.
 *
 * The engine's threads are never attached to the interpreter. An object is an
 * account to them, which they count and hand on, and never look behind.
 */
#ifndef ENGINE_H
#define ENGINE_H

#include <Python.h>
#include <refbuf.h>

#include <stddef.h>
#include <stdint.h>

typedef struct Engine Engine;

typedef enum Outcome {
    DONE,
    NOT_YET,
    CLOSED,
    NO_MEMORY,
} Outcome;

/* One reference to an object that was found. */
typedef struct Match {
    uint64_t number; /* of the addition: the newest has the highest */
    RefBuf_Account *account;
    size_t words; /* of the query that it has */
} Match;

typedef struct Matches {
    Match *items;
    size_t count, room;
} Matches;

typedef struct Job Job;

/* Queries that are asked together, and their answers. Whoever asks reads the
 * answers after engine_wait() has said DONE. */
typedef struct Batch {
    Job *jobs; /* not yet asked */
    size_t best;
    size_t pending; /* asked and not yet answered */
    int abandoned;
    Outcome outcome;
    size_t count;
    Matches answers[];
} Batch;

/* All of these may be called by any thread, and wait for no thread that is
 * attached, unless it says otherwise. */

/* NULL and an errno if there is no memory or a thread cannot be started: then
 * `*started` says how many were. */
Engine *engine_new(size_t threads, size_t keep, size_t *started);

/* Whether this process has the engine's threads. A forked child has not: there no
 * other function may be called. */
int engine_is_here(const Engine *engine);

/* Takes over the caller's reference if DONE. */
Outcome engine_add(Engine *engine, const void *text, size_t length, RefBuf_Account *account, uint64_t *number);

/* NULL if there is no memory. */
Batch *batch_new(size_t queries, size_t best);
Outcome batch_query(Batch *batch, size_t place, const void *text, size_t length);
/* With the references that are still in it. */
void batch_free(Batch *batch);

/* DONE or CLOSED. */
Outcome engine_ask(Engine *engine, Batch *batch);
/* Waits a moment. DONE: the batch is answered, and its outcome says how. Detached
 * only: native threads may need to attach meanwhile. */
Outcome engine_wait(Engine *engine, Batch *batch);
/* The caller will not wait any longer: the batch is freed when its time comes. */
void engine_abandon(Engine *engine, Batch *batch);

/* Waits a moment for there to be no addition that is not in the index. NO_MEMORY:
 * some are not, or only under some of their words; it is said once. Detached only. */
Outcome engine_settle(Engine *engine);

/* From now on everything is refused. The threads drop all references, and end. */
void engine_tell_to_end(Engine *engine);
/* The same, and waits until they have. Detached only. */
void engine_close(Engine *engine);
/* After engine_close(), when nobody uses it any more. */
void engine_free(Engine *engine);

#endif
