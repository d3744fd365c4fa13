/* Included once for each variant, and again with other work beside each pair: with
 * VARIANT(name), INC, DEC, WORK(task) and KERNELS. */

/* All threads count one object. */
static uint64_t VARIANT(shared)(RefBuf_Task *task, uint64_t pairs)
{
    PyObject *op = task->objects[0];
    for (uint64_t i = 0; i < pairs; i++) {
        INC(op);
        USE(op);
        DEC(op);
        WORK(task);
    }
    return pairs;
}

/* One call: its constants are referenced first at its start and last at its
 * return, as the literals of a function were in 2007. */
static __attribute__((noinline)) uint64_t VARIANT(call)(RefBuf_Task *task, size_t depth)
{
    PyObject *literals[REFBUF_CALL_LITERALS];
    size_t at = depth * REFBUF_CALL_LITERALS % task->count;
    for (size_t i = 0; i < REFBUF_CALL_LITERALS; i++) {
        literals[i] = task->objects[at];
        at = at + 1 == task->count ? 0 : at + 1;
        INC(literals[i]);
        USE(literals[i]);
        WORK(task);
    }
    uint64_t pairs = REFBUF_CALL_LITERALS;
    if (depth + 1 < REFBUF_CALL_DEPTH) {
        pairs += VARIANT(call)(task, depth + 1);
    }
    for (size_t i = REFBUF_CALL_LITERALS; i-- > 0;) {
        task->sink += (uintptr_t)Py_TYPE(literals[i]);
        DEC(literals[i]);
    }
    return pairs;
}

static uint64_t VARIANT(literals)(RefBuf_Task *task, uint64_t pairs)
{
    uint64_t done = 0;
    while (done < pairs) {
        done += VARIANT(call)(task, 0);
    }
    return done;
}

/* Objects in a given order. */
static uint64_t VARIANT(zipf)(RefBuf_Task *task, uint64_t pairs)
{
    for (uint64_t i = 0; i < pairs; i++) {
        PyObject *op = task->objects[task->order[task->cursor++ & (task->order_length - 1)]];
        INC(op);
        USE(op);
        task->sink += (uintptr_t)Py_TYPE(op);
        DEC(op);
        WORK(task);
    }
    return pairs;
}

/* Any of many objects, each as likely. */
static uint64_t VARIANT(wide)(RefBuf_Task *task, uint64_t pairs)
{
    for (uint64_t i = 0; i < pairs; i++) {
        PyObject *op = task->objects[random_below(task, task->count)];
        INC(op);
        USE(op);
        task->sink += (uintptr_t)Py_TYPE(op);
        DEC(op);
        WORK(task);
    }
    return pairs;
}

/* The thread's own objects, in turn. */
static uint64_t VARIANT(private)(RefBuf_Task *task, uint64_t pairs)
{
    size_t at = task->cursor;
    for (uint64_t i = 0; i < pairs; i++) {
        PyObject *op = task->objects[at];
        at = at + 1 == task->count ? 0 : at + 1;
        INC(op);
        USE(op);
        task->sink += (uintptr_t)Py_TYPE(op);
        DEC(op);
        WORK(task);
    }
    task->cursor = at;
    return pairs;
}

static inline void VARIANT(visit)(RefBuf_Task *task, PyObject *op)
{
    INC(op);
    USE(op);
    task->sink += (uintptr_t)Py_TYPE(op);
    DEC(op);
    WORK(task);
}

/* Walks the list, then the dict, and takes a reference to each element. Nobody
 * changes them meanwhile, so a borrowed reference is safe to count. */
static uint64_t VARIANT(container)(RefBuf_Task *task, uint64_t pairs)
{
    uint64_t done = 0;
    while (done < pairs) {
        Py_ssize_t size = PyList_GET_SIZE(task->list);
        while (task->list_at < size && done < pairs) {
            VARIANT(visit)(task, PyList_GET_ITEM(task->list, task->list_at++));
            done++;
        }
        PyObject *value;
        while (done < pairs && PyDict_Next(task->dict, &task->dict_at, NULL, &value)) {
            VARIANT(visit)(task, value);
            done++;
        }
        if (done < pairs) {
            task->list_at = 0;
            task->dict_at = 0;
        }
    }
    return done;
}

/* Takes and drops references to any of the objects, holding up to `held_room`
 * of them. A pair is two operations. */
static uint64_t VARIANT(random)(RefBuf_Task *task, uint64_t pairs)
{
    for (uint64_t i = 0; i < 2 * pairs; i++) {
        int take = task->held_count == 0
                   || (task->held_count < task->held_room && (next_random(task) & 1) != 0);
        if (take) {
            PyObject *op = task->objects[random_below(task, task->count)];
            INC(op);
            task->held[task->held_count++] = op;
        }
        else {
            size_t at = random_below(task, task->held_count);
            PyObject *op = task->held[at];
            task->held[at] = task->held[--task->held_count];
            DEC(op);
        }
        if ((i & 1) != 0) {
            WORK(task);
        }
    }
    return pairs;
}

/* Fills `held` with new references, objects in turn. */
static uint64_t VARIANT(make)(RefBuf_Task *task, uint64_t pairs)
{
    uint64_t done = 0;
    while (done < pairs && task->held_count < task->held_room) {
        PyObject *op = task->objects[task->cursor];
        task->cursor = task->cursor + 1 == task->count ? 0 : task->cursor + 1;
        INC(op);
        WORK(task);
        task->held[task->held_count++] = op;
        done++;
    }
    return done;
}

/* Drops what `held` has. */
static uint64_t VARIANT(drop)(RefBuf_Task *task, uint64_t pairs)
{
    uint64_t done = 0;
    while (done < pairs && task->held_count > 0) {
        DEC(task->held[--task->held_count]);
        done++;
    }
    return done;
}

const RefBuf_Kernels KERNELS = {
    VARIANT(shared), VARIANT(literals), VARIANT(zipf), VARIANT(wide), VARIANT(private),
    VARIANT(container), VARIANT(random), VARIANT(make), VARIANT(drop),
};

#undef VARIANT
#undef INC
#undef DEC
#undef WORK
#undef KERNELS
