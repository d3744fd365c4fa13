/* Threads, a queue, and words. Of refbuf it needs two functions:
 *
 *     RefBuf_AccountIncRef    a word refers to an object; a query finds one
 *     RefBuf_AccountDecRef    a word has newer objects; a match was not good enough
 *
 * Of Python it needs nothing, and may use nothing: memory is malloc's.
 *
 * Locks. RefBuf_AccountIncRef may wait for the interpreter, where more references
 * are taken at once than refbuf has put by. So a lock is of one of two kinds:
 *
 *     Engine.lock   attached threads take it; nobody counts a reference up under it
 *     Shard.lock    the engine's threads alone take it, and count under it
 *
 * Whoever holds a shard's lock takes no other.
 */
#include "engine.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SHARDS 16
#define FIRST_BUCKETS 64
#define MOMENT_NS 50000000

/* -- layouts --------------------------------------------------------------- */

typedef struct Posting {
    uint64_t number;
    RefBuf_Account *account;
} Posting;

/* A word, and the newest objects that have it, oldest first. */
typedef struct Word {
    struct Word *next;
    uint64_t hash;
    Posting *postings;
    size_t count, room;
    size_t length;
    char text[];
} Word;

/* Words by their hash. */
typedef struct Shard {
    pthread_mutex_t lock;
    Word **buckets;
    size_t bucket_count; /* a power of two, or 0 */
    size_t words;
} Shard;

/* What waits in the queue: an object to be added, if it has an account, or else a
 * query. */
struct Job {
    Job *next;
    RefBuf_Account *account;
    uint64_t number;
    Batch *batch;
    size_t place;
    size_t length;
    char text[];
};

struct Engine {
    pid_t process;
    size_t keep;
    pthread_mutex_t lock; /* of all below, up to the shards */
    pthread_cond_t work;  /* something to do */
    pthread_cond_t done;  /* something that was waited for */
    Job *first, **end;
    uint64_t added;
    size_t adding; /* in the queue or under way */
    size_t lost;   /* additions that found no memory */
    int closing, closed;
    size_t working; /* threads that may still use any shard */
    size_t emptied; /* shards, once nobody works */
    Shard shards[SHARDS];
    size_t threads;
    pthread_t ids[];
};

/* -- words of a text ------------------------------------------------------- */

typedef struct Slice {
    const char *text;
    size_t length;
    uint64_t hash;
} Slice;

typedef struct Slices {
    Slice *items;
    size_t count;
} Slices;

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

/* The words of the job's text, each once. They are slices of the text. */
static Outcome split(const Job *job, Slices *words)
{
    words->count = 0;
    /* Two bytes a word, at the least. */
    words->items = malloc((job->length / 2 + 1) * sizeof *words->items);
    if (words->items == NULL) {
        return NO_MEMORY;
    }
    for (size_t at = 0; at < job->length;) {
        size_t start = at;
        while (at < job->length && !is_space(job->text[at])) {
            at++;
        }
        if (at > start) {
            const char *text = job->text + start;
            words->items[words->count++] = (Slice){text, at - start, hash_of(text, at - start)};
        }
        while (at < job->length && is_space(job->text[at])) {
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

static Shard *shard_of(Engine *engine, const Slice *word)
{
    return &engine->shards[word->hash >> 60];
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

/* Drops all references. */
static void empty(Shard *shard)
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

/* -- jobs ------------------------------------------------------------------ */

static Job *job_new(const void *text, size_t length)
{
    if (length > PTRDIFF_MAX / sizeof(Slice)) {
        return NULL;
    }
    Job *job = calloc(1, sizeof *job + length);
    if (job != NULL && length > 0) {
        memcpy(job->text, text, length);
    }
    if (job != NULL) {
        job->length = length;
    }
    return job;
}

/* With the job's reference. */
static void job_free(Job *job)
{
    if (job->account != NULL) {
        RefBuf_AccountDecRef(job->account);
    }
    free(job);
}

static Outcome add_words(Engine *engine, const Job *job)
{
    Slices words;
    Outcome outcome = split(job, &words);
    for (size_t i = 0; i < words.count; i++) {
        Shard *shard = shard_of(engine, &words.items[i]);
        pthread_mutex_lock(&shard->lock);
        Word *word = find_or_add(shard, &words.items[i]);
        if (word == NULL || refer(word, engine->keep, job->number, job->account) != DONE) {
            outcome = NO_MEMORY;
        }
        pthread_mutex_unlock(&shard->lock);
    }
    free(words.items);
    return outcome;
}

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

/* One reference for each object, the best ones first and no others. */
static void rank(Matches *matches, size_t best)
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

static Outcome answer(Engine *engine, const Job *job)
{
    Matches *matches = &job->batch->answers[job->place];
    Slices words;
    Outcome outcome = split(job, &words);
    for (size_t i = 0; i < words.count && outcome == DONE; i++) {
        Shard *shard = shard_of(engine, &words.items[i]);
        pthread_mutex_lock(&shard->lock);
        Word *word = find(shard, &words.items[i]);
        if (word != NULL) {
            outcome = collect(matches, word);
        }
        pthread_mutex_unlock(&shard->lock);
    }
    free(words.items);
    rank(matches, job->batch->best);
    return outcome;
}

/* -- batches --------------------------------------------------------------- */

Batch *batch_new(size_t queries, size_t best)
{
    if (queries > PTRDIFF_MAX / sizeof(Matches) - 1) {
        return NULL;
    }
    Batch *batch = calloc(1, sizeof *batch + queries * sizeof *batch->answers);
    if (batch != NULL) {
        batch->count = queries;
        batch->best = best;
    }
    return batch;
}

Outcome batch_query(Batch *batch, size_t place, const void *text, size_t length)
{
    Job *job = job_new(text, length);
    if (job == NULL) {
        return NO_MEMORY;
    }
    job->batch = batch;
    job->place = place;
    job->next = batch->jobs;
    batch->jobs = job;
    return DONE;
}

void batch_free(Batch *batch)
{
    for (Job *job = batch->jobs, *next; job != NULL; job = next) {
        next = job->next;
        job_free(job);
    }
    for (size_t i = 0; i < batch->count; i++) {
        Matches *matches = &batch->answers[i];
        for (size_t j = 0; j < matches->count; j++) {
            if (matches->items[j].account != NULL) {
                RefBuf_AccountDecRef(matches->items[j].account);
            }
        }
        free(matches->items);
    }
    free(batch);
}

/* -- the threads ----------------------------------------------------------- */

/* The job is over, and so is its reference. Whoever waits for it hears of it. */
static void finish(Engine *engine, Job *job, Outcome outcome)
{
    int adds = job->account != NULL;
    Batch *batch = job->batch, *abandoned = NULL;
    job_free(job);
    pthread_mutex_lock(&engine->lock);
    if (adds) {
        engine->lost += outcome == NO_MEMORY;
        if (--engine->adding == 0) {
            pthread_cond_broadcast(&engine->done);
        }
    }
    else {
        if (outcome != DONE) {
            batch->outcome = outcome;
        }
        if (--batch->pending == 0) {
            abandoned = batch->abandoned ? batch : NULL;
            pthread_cond_broadcast(&engine->done);
        }
    }
    pthread_mutex_unlock(&engine->lock);
    if (abandoned != NULL) {
        batch_free(abandoned);
    }
}

/* The next job, when there is one; NULL to end, when the queue is empty. */
static Job *next_job(Engine *engine, int *closing)
{
    pthread_mutex_lock(&engine->lock);
    while (engine->first == NULL && !engine->closing) {
        pthread_cond_wait(&engine->work, &engine->lock);
    }
    Job *job = engine->first;
    if (job != NULL) {
        engine->first = job->next;
        if (engine->first == NULL) {
            engine->end = &engine->first;
        }
    }
    *closing = engine->closing;
    pthread_mutex_unlock(&engine->lock);
    return job;
}

/* Once nobody works any more, the threads share in dropping what is left. */
static void end(Engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    if (--engine->working == 0) {
        pthread_cond_broadcast(&engine->work);
    }
    while (engine->working > 0) {
        pthread_cond_wait(&engine->work, &engine->lock);
    }
    while (engine->emptied < SHARDS) {
        Shard *shard = &engine->shards[engine->emptied++];
        pthread_mutex_unlock(&engine->lock);
        empty(shard);
        pthread_mutex_lock(&engine->lock);
    }
    pthread_mutex_unlock(&engine->lock);
}

static void *run(void *argument)
{
    Engine *engine = argument;
    int closing;
    Job *job;
    while ((job = next_job(engine, &closing)) != NULL) {
        Outcome outcome = CLOSED;
        if (!closing) {
            outcome = job->account != NULL ? add_words(engine, job) : answer(engine, job);
        }
        finish(engine, job, outcome);
    }
    end(engine);
    return NULL;
}

/* Signals are for Python's threads. */
static int start(Engine *engine)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&engine->ids[engine->threads], NULL, run, engine);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

/* -- the engine ------------------------------------------------------------ */

/* On Linux none of this fails. */
static int init(Engine *engine)
{
    pthread_condattr_t monotonic;
    int error = pthread_condattr_init(&monotonic);
    if (error != 0) {
        return error;
    }
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    error = pthread_cond_init(&engine->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (error == 0) {
        error = pthread_cond_init(&engine->work, NULL);
    }
    if (error == 0) {
        error = pthread_mutex_init(&engine->lock, NULL);
    }
    for (size_t i = 0; i < SHARDS && error == 0; i++) {
        error = pthread_mutex_init(&engine->shards[i].lock, NULL);
    }
    return error;
}

Engine *engine_new(size_t threads, size_t keep, size_t *started)
{
    *started = 0;
    Engine *engine = calloc(1, sizeof *engine + threads * sizeof *engine->ids);
    if (engine == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    int error = init(engine);
    if (error != 0) {
        free(engine);
        errno = error;
        return NULL;
    }
    engine->process = getpid();
    engine->keep = keep;
    engine->end = &engine->first;
    for (; engine->threads < threads && error == 0; engine->threads += error == 0) {
        pthread_mutex_lock(&engine->lock);
        engine->working++;
        pthread_mutex_unlock(&engine->lock);
        error = start(engine);
    }
    *started = engine->threads;
    if (error != 0) {
        pthread_mutex_lock(&engine->lock);
        engine->working--; /* the one that did not come */
        pthread_mutex_unlock(&engine->lock);
        engine_close(engine);
        engine_free(engine);
        errno = error;
        return NULL;
    }
    return engine;
}

int engine_is_here(const Engine *engine)
{
    return engine->process == getpid();
}

/* Puts jobs into the queue. */
static void put(Engine *engine, Job *chain)
{
    while (chain != NULL) {
        Job *job = chain;
        chain = job->next;
        job->next = NULL;
        *engine->end = job;
        engine->end = &job->next;
    }
}

Outcome engine_add(Engine *engine, const void *text, size_t length, RefBuf_Account *account, uint64_t *number)
{
    Job *job = job_new(text, length);
    if (job == NULL) {
        return NO_MEMORY;
    }
    pthread_mutex_lock(&engine->lock);
    if (engine->closing) {
        pthread_mutex_unlock(&engine->lock);
        free(job);
        return CLOSED;
    }
    job->account = account;
    job->number = *number = engine->added++;
    engine->adding++;
    put(engine, job);
    pthread_cond_signal(&engine->work);
    pthread_mutex_unlock(&engine->lock);
    return DONE;
}

Outcome engine_ask(Engine *engine, Batch *batch)
{
    pthread_mutex_lock(&engine->lock);
    if (engine->closing) {
        pthread_mutex_unlock(&engine->lock);
        return CLOSED;
    }
    batch->pending = batch->count;
    put(engine, batch->jobs);
    batch->jobs = NULL;
    pthread_cond_broadcast(&engine->work);
    pthread_mutex_unlock(&engine->lock);
    return DONE;
}

static struct timespec in_a_moment(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_nsec += MOMENT_NS;
    if (time.tv_nsec >= 1000000000) {
        time.tv_nsec -= 1000000000;
        time.tv_sec++;
    }
    return time;
}

Outcome engine_wait(Engine *engine, Batch *batch)
{
    struct timespec until = in_a_moment();
    int error = 0;
    pthread_mutex_lock(&engine->lock);
    while (batch->pending > 0 && error == 0) {
        error = pthread_cond_timedwait(&engine->done, &engine->lock, &until);
    }
    Outcome outcome = batch->pending > 0 ? NOT_YET : DONE;
    pthread_mutex_unlock(&engine->lock);
    return outcome;
}

void engine_abandon(Engine *engine, Batch *batch)
{
    pthread_mutex_lock(&engine->lock);
    int over = batch->pending == 0;
    batch->abandoned = 1;
    pthread_mutex_unlock(&engine->lock);
    if (over) {
        batch_free(batch);
    }
}

Outcome engine_settle(Engine *engine)
{
    struct timespec until = in_a_moment();
    int error = 0;
    Outcome outcome = DONE;
    pthread_mutex_lock(&engine->lock);
    while (engine->adding > 0 && !engine->closing && error == 0) {
        error = pthread_cond_timedwait(&engine->done, &engine->lock, &until);
    }
    if (engine->closing) {
        outcome = CLOSED;
    }
    else if (engine->adding > 0) {
        outcome = NOT_YET;
    }
    else if (engine->lost > 0) {
        engine->lost = 0;
        outcome = NO_MEMORY;
    }
    pthread_mutex_unlock(&engine->lock);
    return outcome;
}

/* Whether it was not told before. */
static int tell_to_end(Engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    int first = !engine->closing;
    engine->closing = 1;
    pthread_cond_broadcast(&engine->work);
    pthread_cond_broadcast(&engine->done);
    pthread_mutex_unlock(&engine->lock);
    return first;
}

void engine_tell_to_end(Engine *engine)
{
    tell_to_end(engine);
}

void engine_close(Engine *engine)
{
    int first = tell_to_end(engine);
    for (size_t i = 0; first && i < engine->threads; i++) {
        pthread_join(engine->ids[i], NULL);
    }
    pthread_mutex_lock(&engine->lock);
    if (first) {
        engine->closed = 1;
        pthread_cond_broadcast(&engine->done);
    }
    while (!engine->closed) {
        pthread_cond_wait(&engine->done, &engine->lock);
    }
    pthread_mutex_unlock(&engine->lock);
}

void engine_free(Engine *engine)
{
    for (size_t i = 0; i < SHARDS; i++) {
        pthread_mutex_destroy(&engine->shards[i].lock);
    }
    pthread_mutex_destroy(&engine->lock);
    pthread_cond_destroy(&engine->work);
    pthread_cond_destroy(&engine->done);
    free(engine);
}
