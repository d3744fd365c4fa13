/* Words of texts, and the newest objects that have each: the index proper. */
#ifndef WORDS_H
#define WORDS_H

#include "engine.h"

#include <pthread.h>

#define SHARDS 16

/* A word in a text. */
typedef struct Slice {
    const char *text;
    size_t length;
    uint64_t hash;
} Slice;

typedef struct Slices {
    Slice *items;
    size_t count;
} Slices;

typedef struct Word Word;

/* Words by their hash. */
typedef struct Shard {
    pthread_mutex_t lock;
    Word **buckets;
    size_t bucket_count; /* a power of two, or 0 */
    size_t words;
} Shard;

/* The words of a text, each once: slices of it. Their items are the caller's to free. */
Outcome split(const char *text, size_t length, Slices *words);

Shard *shard_of(Shard *shards, const Slice *word);

/* 0 or an error number; the rest of the shard is zero. */
int shard_init(Shard *shard);
void shard_destroy(Shard *shard);

/* The word refers to the object from now on, unless it has `keep` newer ones. The
 * caller's reference keeps the account meanwhile. */
Outcome shard_add(Shard *shard, const Slice *slice, size_t keep, uint64_t number, RefBuf_Account *account);

/* A reference for each object that the word refers to. */
Outcome shard_collect(Shard *shard, const Slice *slice, Matches *matches);

/* Drops all references. Nobody else uses the shard. */
void shard_empty(Shard *shard);

/* One reference for each object, the best ones first and no others. */
void rank(Matches *matches, size_t best);

/* With the references that are still in it. */
void matches_free(Matches *matches);

#endif
