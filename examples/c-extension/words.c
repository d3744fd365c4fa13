/* Words, and which objects they refer to. Of refbuf this needs two functions:
 *
 *     RefBuf_AccountIncRef    a word refers to an object; a query finds one
 *     RefBuf_AccountDecRef    a word has newer objects; a match was not good enough
 *
 * Of Python it needs nothing, and may use nothing: memory is malloc's. A shard's lock is
 * taken by threads that never are attached, and references are counted under it;
 * whoever holds one takes no other.
 */
#include "words.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_BUCKETS 64

typedef struct Posting {
    uint64_t number;
    RefBuf_Account *account;
} Posting;

/* A word, and the newest objects that have it, oldest first. */
struct Word {
    struct Word *next;
    uint64_t hash;
    Posting *postings;
    size_t count, room;
    size_t length;
    char text[];
};

/* -- words of a text ------------------------------------------------------- */

static int is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static int compare_slices(const void *left, const void *right)
{
    const Slice *a = left, *b = right;
    if (a->hash != b->hash) {
        return a->hash < b->hash ? -1 : 1;
    }
    if (a->length != b->length) {
        return a->length < b->length ? -1 : 1;
    }
    return memcmp(a->text, b->text, a->length);
}

/* FNV-1a, and the high bits, which choose the shard, stirred. */
static uint64_t hash_of(const char *text, size_t length)
{
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ (unsigned char)text[i]) * 0x100000001B3u;
    }
    hash ^= hash >> 32;
    return hash * 0x9E3779B97F4A7C15u;
}

Outcome split(const char *text, size_t length, Slices *words)
{
    words->count = 0;
    /* Two bytes a word, at the least. */
    words->items = malloc((length / 2 + 1) * sizeof *words->items);
    if (words->items == NULL) {
        return NO_MEMORY;
    }
    for (size_t at = 0; at < length;) {
        size_t start = at;
        while (at < length && !is_space(text[at])) {
            at++;
        }
        if (at > start) {
            const char *word = text + start;
            words->items[words->count++] = (Slice){word, at - start, hash_of(word, at - start)};
        }
        while (at < length && is_space(text[at])) {
            at++;
        }
    }
    qsort(words->items, words->count, sizeof *words->items, compare_slices);
    size_t kept = 0;
    for (size_t i = 0; i < words->count; i++) {
        if (kept == 0 || compare_slices(&words->items[kept - 1], &words->items[i]) != 0) {
            words->items[kept++] = words->items[i];
        }
    }
    words->count = kept;
    return DONE;
}

/* -- shards ---------------------------------------------------------------- */

Shard *shard_of(Shard *shards, const Slice *word)
{
    return &shards[word->hash >> 60];
}

_Static_assert(SHARDS == 16, "the highest four bits choose the shard");

static Word **bucket_of(const Shard *shard, uint64_t hash)
{
    return &shard->buckets[hash & (shard->bucket_count - 1)];
}

static Word *find(const Shard *shard, const Slice *slice)
{
    if (shard->bucket_count == 0) {
        return NULL;
    }
    Word *word = *bucket_of(shard, slice->hash);
    while (word != NULL && (word->hash != slice->hash || word->length != slice->length ||
                            memcmp(word->text, slice->text, slice->length) != 0)) {
        word = word->next;
    }
    return word;
}

/* More buckets, if there is memory. */
static void grow(Shard *shard)
{
    Shard grown = *shard;
    grown.bucket_count = shard->bucket_count == 0 ? FIRST_BUCKETS : 2 * shard->bucket_count;
    grown.buckets = calloc(grown.bucket_count, sizeof *grown.buckets);
    if (grown.buckets == NULL) {
        return;
    }
    for (size_t i = 0; i < shard->bucket_count; i++) {
        for (Word *word = shard->buckets[i], *next; word != NULL; word = next) {
            next = word->next;
            Word **bucket = bucket_of(&grown, word->hash);
            word->next = *bucket;
            *bucket = word;
        }
    }
    free(shard->buckets);
    shard->buckets = grown.buckets;
    shard->bucket_count = grown.bucket_count;
}

/* NULL if there is no memory. */
static Word *find_or_add(Shard *shard, const Slice *slice)
{
    Word *word = find(shard, slice);
    if (word != NULL) {
        return word;
    }
    if (shard->words >= shard->bucket_count) {
        grow(shard);
    }
    word = shard->bucket_count == 0 ? NULL : calloc(1, sizeof *word + slice->length);
    if (word == NULL) {
        return NULL;
    }
    word->hash = slice->hash;
    word->length = slice->length;
    memcpy(word->text, slice->text, slice->length);
    Word **bucket = bucket_of(shard, word->hash);
    word->next = *bucket;
    *bucket = word;
    shard->words++;
    return word;
}

/* The word refers to the object from now on, unless it has `keep` newer ones. If
 * that makes one too many, the oldest goes. */
static Outcome refer(Word *word, size_t keep, uint64_t number, RefBuf_Account *account)
{
    /* Threads finish out of order, though not by much. */
    size_t at = word->count;
    while (at > 0 && word->postings[at - 1].number > number) {
        at--;
    }
    if (word->count == keep) {
        if (at == 0) {
            return DONE;
        }
        RefBuf_AccountDecRef(word->postings[0].account);
        at--;
        memmove(word->postings, word->postings + 1, at * sizeof *word->postings);
    }
    else {
        if (word->count == word->room) {
            size_t room = word->room == 0 ? 4 : 2 * word->room;
            Posting *postings = realloc(word->postings, room * sizeof *postings);
            if (postings == NULL) {
                return NO_MEMORY;
            }
            word->postings = postings;
            word->room = room;
        }
        memmove(word->postings + at + 1, word->postings + at, (word->count - at) * sizeof *word->postings);
        word->count++;
    }
    RefBuf_AccountIncRef(account); /* of the job's, which keeps the account meanwhile */
    word->postings[at] = (Posting){number, account};
    return DONE;
}

/* A reference for each object that the word refers to. */
static Outcome collect(Matches *matches, const Word *word)
{
    if (word->count > matches->room - matches->count) {
        size_t room = 2 * (matches->count + word->count);
        Match *items = realloc(matches->items, room * sizeof *items);
        if (items == NULL) {
            return NO_MEMORY;
        }
        matches->items = items;
        matches->room = room;
    }
    for (size_t i = 0; i < word->count; i++) {
        RefBuf_AccountIncRef(word->postings[i].account);
        matches->items[matches->count++] = (Match){word->postings[i].number, word->postings[i].account, 1};
    }
    return DONE;
}

/* -- what the engine asks of a shard ---------------------------------------- */

int shard_init(Shard *shard)
{
    return pthread_mutex_init(&shard->lock, NULL);
}

void shard_destroy(Shard *shard)
{
    pthread_mutex_destroy(&shard->lock);
}

Outcome shard_add(Shard *shard, const Slice *slice, size_t keep, uint64_t number, RefBuf_Account *account)
{
    pthread_mutex_lock(&shard->lock);
    Word *word = find_or_add(shard, slice);
    Outcome outcome = word == NULL ? NO_MEMORY : refer(word, keep, number, account);
    pthread_mutex_unlock(&shard->lock);
    return outcome;
}

Outcome shard_collect(Shard *shard, const Slice *slice, Matches *matches)
{
    pthread_mutex_lock(&shard->lock);
    const Word *word = find(shard, slice);
    Outcome outcome = word == NULL ? DONE : collect(matches, word);
    pthread_mutex_unlock(&shard->lock);
    return outcome;
}

void shard_empty(Shard *shard)
{
    for (size_t i = 0; i < shard->bucket_count; i++) {
        for (Word *word = shard->buckets[i], *next; word != NULL; word = next) {
            next = word->next;
            for (size_t j = 0; j < word->count; j++) {
                RefBuf_AccountDecRef(word->postings[j].account);
            }
            free(word->postings);
            free(word);
        }
    }
    free(shard->buckets);
    shard->buckets = NULL;
    shard->bucket_count = shard->words = 0;
}

/* -- matches --------------------------------------------------------------- */

static int older(const void *left, const void *right)
{
    const Match *a = left, *b = right;
    return (a->number < b->number) - (a->number > b->number);
}

static int worse(const void *left, const void *right)
{
    const Match *a = left, *b = right;
    int order = (a->words < b->words) - (a->words > b->words);
    return order != 0 ? order : older(left, right);
}

void rank(Matches *matches, size_t best)
{
    if (matches->count == 0) {
        return;
    }
    Match *items = matches->items;
    qsort(items, matches->count, sizeof *items, older);
    size_t kept = 0;
    for (size_t i = 1; i < matches->count; i++) {
        if (items[i].number == items[kept].number) {
            items[kept].words++;
            RefBuf_AccountDecRef(items[i].account);
        }
        else {
            items[++kept] = items[i];
        }
    }
    matches->count = kept + 1;
    qsort(items, matches->count, sizeof *items, worse);
    while (matches->count > best) {
        RefBuf_AccountDecRef(items[--matches->count].account);
    }
}

void matches_free(Matches *matches)
{
    for (size_t i = 0; i < matches->count; i++) {
        if (matches->items[i].account != NULL) {
            RefBuf_AccountDecRef(matches->items[i].account);
        }
    }
    free(matches->items);
}
