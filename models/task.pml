/* One task under two executors, two resumers, a canceller and a reaper.
 *
 * `apply` of trio_bgtasks/_lifecycle.py is what happens inside the atomic blocks; the processes are
 * what the manager and a store do around it. docs/explanation/model.md maps each step to the code.
 *
 * -DLATE_END plants a bug: the end of an attempt is taken whatever the record's attempt is.
 * -DNO_FENCE plants another: a task is called an orphan though its executor was not fenced first.
 * -DNO_SWEEP plants a third: executors are fenced, but nobody looks for their tasks.
 */

#define ATTEMPTS 3

mtype = { nothing, running, stopped, finished, cancelled }   /* finished: completed or failed */

/* the record */
mtype status = nothing;
byte attempt = 0;
byte runner = 0;              /* the executor's number + 1; 0: none */
bool marked = false;          /* a cancel was requested and stored */

/* the store's view of the executors, and how they are */
bool fenced[2];
bool alive[2] = true;         /* not crashed */
bool awake[2] = true;         /* not stalled */
bool stalled = false;         /* one of them stalls once */

/* of the history what the promises speak of */
bool accepted = false;        /* a cancel was accepted */
byte starts = 0;              /* attempts that were started */
byte current = 0;             /* the attempt that has started and not ended */

#define ENDED(s) (s == finished || s == cancelled)
#define UP(e) (alive[e] && awake[e])

/* ---- what `apply` does, each in one transaction ------------------------------------------------ */

inline started(e, n)
{
    assert(!ENDED(status));                    /* promise 3: terminal records never change */
    assert(current == 0);                      /* promise 1: one attempt at a time */
    assert(!accepted);                         /* promise 5: never resumed */
    starts++;
    assert(n == starts);                       /* promises 3 and 7: one winner, numbers grow by 1 */
    status = running; attempt = n; runner = e + 1; current = n;
    run Body(e, n)
}

inline ended(to)
{
    assert(status == running);                 /* promise 3: terminal records never change */
    status = (marked -> cancelled : to); runner = 0; current = 0;
    assert(!accepted || status == cancelled)   /* promise 5: an accepted cancel is final */
}

#ifdef LATE_END
#define WRITES(e, n) (status == running && !fenced[e])
#else
#define WRITES(e, n) (status == running && attempt == n && runner == e + 1 && !fenced[e])
#endif

/* ---- who asks ---------------------------------------------------------------------------------- */

proctype Body(byte e; byte n)
{
    mtype end;
    bool again = false;
    /* The work: it is done, is stopped, or sees the mark. A dead or fenced one is over. */
    if
    :: UP(e) -> end = finished
    :: UP(e) -> end = stopped
    :: UP(e) && marked -> end = cancelled
    :: !alive[e] || fenced[e] -> end = nothing
    fi;
    if
    :: end == nothing -> goto over
    :: else -> skip
    fi;
tell:
    if
    :: atomic { UP(e) ->
        if
        :: WRITES(e, n) ->
            assert(current == n);              /* promises 1 and 4: a late write is refused */
            assert(!fenced[e]);                /* promise 4: a fenced executor changes nothing */
            ended(end);
            if
            :: !again -> again = true          /* the answer is lost: told once more */
            :: goto over
            fi
        :: else -> goto over                   /* refused */
        fi }
        goto tell
    :: !alive[e] || (fenced[e] && !awake[e]) -> skip   /* it never comes to tell it */
    fi;
over:
    skip
}

proctype Resumer(byte e)
{
    byte seen;
end:
    do
    :: atomic { UP(e) && status == stopped && attempt < ATTEMPTS -> seen = attempt };
        if
        :: atomic { UP(e) ->
            if
            :: status == stopped && attempt == seen && !marked && !fenced[e] -> started(e, seen + 1)
            :: else -> skip                    /* refused, with the current status */
            fi }
        :: !alive[e] || (fenced[e] && !awake[e]) -> break
        fi
    :: !alive[e] || fenced[e] || ENDED(status) || (status == stopped && attempt == ATTEMPTS) -> break
    od
}

proctype Canceller()
{
end:
    if
    :: atomic { status != nothing ->
        if
        :: status == running -> marked = true; accepted = true
        :: status == stopped -> marked = true; accepted = true; status = cancelled
        :: else -> skip                        /* it lost the race, and is told what the task ended as */
        fi }
    :: true                                    /* nobody cancels */
    fi
}

proctype Reaper()
{
    byte e, n;
end:
    do
    :: atomic { !UP(0) && !fenced[0] -> fenced[0] = true }   /* looked at and fenced in one transaction */
    :: atomic { !UP(1) && !fenced[1] -> fenced[1] = true }
#ifndef NO_SWEEP
#ifdef NO_FENCE
    :: atomic { status == running && !UP(runner - 1) -> e = runner - 1; n = attempt };
#else
    :: atomic { status == running && fenced[runner - 1] -> e = runner - 1; n = attempt };
#endif
        atomic {
            if
            :: status == running && attempt == n && runner == e + 1 ->
                assert(fenced[e]);             /* promise 6: a live execution is never called an orphan */
                ended(stopped)
            :: else -> skip
            fi }
#endif
    od
}

proctype Fate(byte e)
{
    do
    :: atomic { UP(e) && !stalled -> awake[e] = false; stalled = true }
    :: atomic { alive[e] && !awake[e] -> awake[e] = true }
    :: atomic { alive[e] -> alive[e] = false } -> break
    :: true -> break                           /* nothing more happens to it */
    od
}

init
{
    atomic {
        run Fate(0); run Fate(1); run Reaper(); run Canceller();
        run Resumer(0); run Resumer(1)
    };
    atomic {
        if
        :: UP(0) && !fenced[0] -> started(0, 1)
        :: !UP(0) || fenced[0] -> skip         /* nobody starts it */
        fi }
}

/* ---- promises about every way ------------------------------------------------------------------- */

#define orphaned (status == running && fenced[runner - 1])
#define dead_runs (status == running && !alive[runner - 1])

/* promise 5: an accepted cancel ends. */
ltl cancel_ends { [] (accepted -> <> (status == cancelled)) }

/* promise 6: the task of a dead executor is found, and so is that of one that is given up. */
ltl orphan_found { [] ((dead_runs || orphaned) -> <> !(dead_runs || orphaned)) }
