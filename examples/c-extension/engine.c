/* Threads and a queue. Of refbuf this needs RefBuf_AccountDecRef, for a job's reference;
 * of Python nothing, and may use nothing: memory is malloc's.
 *
 * Locks. RefBuf_AccountIncRef may wait for the interpreter, where more references
 * are taken at once than refbuf has put by. So a lock is of one of two kinds:
 *
 *     Engine.lock   attached threads take it; nobody counts a reference up under it
 *     Shard.lock    the engine's threads alone take it, and count under it
 *
 * Whoever holds a shard's lock takes no other.
 */
#include "words.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MOMENT_NS 50000000

/* -- layouts --------------------------------------------------------------- */

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
    Outcome outcome = split(job->text, job->length, &words);
    for (size_t i = 0; i < words.count; i++) {
        const Slice *word = &words.items[i];
        Shard *shard = shard_of(engine->shards, word);
        if (shard_add(shard, word, engine->keep, job->number, job->account) != DONE) {
            outcome = NO_MEMORY;
        }
    }
    free(words.items);
    return outcome;
}

static Outcome answer(Engine *engine, const Job *job)
{
    Matches *matches = &job->batch->answers[job->place];
    Slices words;
    Outcome outcome = split(job->text, job->length, &words);
    for (size_t i = 0; i < words.count && outcome == DONE; i++) {
        outcome = shard_collect(shard_of(engine->shards, &words.items[i]), &words.items[i], matches);
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
        matches_free(&batch->answers[i]);
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
        shard_empty(shard);
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
        error = shard_init(&engine->shards[i]);
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
        shard_destroy(&engine->shards[i]);
    }
    pthread_mutex_destroy(&engine->lock);
    pthread_cond_destroy(&engine->work);
    pthread_cond_destroy(&engine->done);
    free(engine);
}
