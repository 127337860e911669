/* A workflow: an atomic step, a sleep, and a wait for an event; runs that are lost, and an emit before, during or after the wait.

   Each move is one transaction under READ COMMITTED, a statement a step. Two processes run the job; a run that was lost may go on
   at any speed. Time comes when it comes. */

int without; /* the guards that are taken out; check.py gives their numbers in the environment, and that of the faults */
#define kept(guard) ((without & (guard)) == 0)
#define required(guard, condition) (!kept(guard) || (condition))

/* The guards. README.md says which line of the code each of them is. */
#define FENCE_IN_RECORD (1 << 0)
#define RECORD_WITH_EFFECT (1 << 1)
#define RECORD_OF_EARLIER_RUNS (1 << 2)
#define DUE_OF_SLEEP (1 << 3)
#define RECORD_BEFORE_LOOK (1 << 4)
#define DELIVERY_AFTER_COMMIT (1 << 5)
#define LOCKED_STAYS_UNDELIVERED (1 << 6)
#define LOOK_AT_WAIT_IN_SETTLE (1 << 7)
#define LOCK_IN_TAKE (1 << 8)
#define OPEN_UNDER_LOCK_IN_WAKE (1 << 9)

mtype:status = { PENDING, RUNNING, SCHEDULED, COMPLETED };
mtype:record = { NONE, OPEN, DONE, TIMED_OUT };

/* What is committed. */
mtype:status status = PENDING;
byte fence = 0;
bool stepped = false; /* the record of the step */
mtype:record sleep = NONE, wait = NONE;
bool sleeps = false; /* of a scheduled job: it sleeps, and does not wait for the event */
bool emitted = false, delivered = false;
bool morning = false, has_timeout = false, too_late = false; /* the time of the sleep, and of the wait, has come */

#define NOBODY 0
#define EMITTER 3 /* the worker processes are 1 and 2 */
#define DELIVERER 4
#define CHANGER 5
byte locked_by = NOBODY; /* the job's row */

/* What only the promises know. */
byte effects = 0;
byte faults = 0; /* that are still to come: runs that are lost, waits that an operator ends */
#define may_fail (faults > 0)

#define take_lock(t) atomic { locked_by == NOBODY -> locked_by = t }
#define drop_lock(t) if :: locked_by == t -> locked_by = NOBODY :: else fi
#define holds_job (status == RUNNING && fence == mine)
#define is_over (emitted || too_late)

/* The wait ends once: its result may have been read. */
inline end_wait(how) { assert(wait == OPEN); wait = how }

/* `take`: under the lock of the job's row; `answer` is what the handler gets, OPEN when it has to leave. */
inline take(t) {
    if :: kept(LOCK_IN_TAKE) -> take_lock(t) :: else fi;
    atomic {
        held = holds_job; answer = wait;
        if :: wait == OPEN && emitted -> answer = DONE :: wait == OPEN && !emitted && too_late -> answer = TIMED_OUT :: else fi;
        writes = held && wait == OPEN && answer != OPEN };
    atomic { if :: writes -> end_wait(answer) :: else fi; writes = false; drop_lock(t) }
}

/* `settle` of a run that waits, with `put_to_wait`. */
inline settle_waiting(t, asleep) {
    take_lock(t);
    atomic {
        if
        :: holds_job ->
            fence++; sleeps = asleep;
            if
            :: !asleep && wait != OPEN && kept(LOOK_AT_WAIT_IN_SETTLE) -> status = PENDING
            :: else -> status = SCHEDULED
            fi
        :: else
        fi;
        drop_lock(t) }
}

/* A worker process: claim the job, and call its handler, which begins anew and finds what is on record. */
proctype Worker(byte t) {
    byte mine;
    bool knows, held, writes, saw, looks;
    mtype:record answer;
next:
    atomic { status == PENDING && locked_by == NOBODY -> status = RUNNING; fence++; mine = fence };
    knows = stepped && kept(RECORD_OF_EARLIER_RUNS);
    /* The atomic step: its effect and its record are one transaction, whose last statement looks at the fence. */
    if
    :: knows
    :: !knows && kept(RECORD_WITH_EFFECT) ->
        atomic {
            locked_by == NOBODY;
            held = required(FENCE_IN_RECORD, holds_job);
            if :: held -> effects++; stepped = true :: else fi;
            assert(effects <= 1) };
        if :: !held -> goto over :: else fi
    :: !knows && !kept(RECORD_WITH_EFFECT) ->
        atomic { effects++; assert(effects <= 1) };
        atomic { locked_by == NOBODY; held = holds_job; if :: held -> stepped = true :: else fi };
        if :: !held -> goto over :: else fi
    fi;
    /* The sleep. */
    atomic {
        locked_by == NOBODY; held = holds_job; answer = sleep;
        if
        :: held && sleep == NONE -> sleep = OPEN; answer = OPEN
        :: held && sleep == OPEN && required(DUE_OF_SLEEP, morning) -> assert(morning); sleep = DONE; answer = DONE
        :: else
        fi };
    if :: !held -> goto over :: else fi;
    if :: answer == OPEN -> settle_waiting(t, true); goto over :: else fi;
    /* The wait: on record first, and then a look. */
    saw = emitted && !kept(RECORD_BEFORE_LOOK);
    atomic {
        locked_by == NOBODY; held = holds_job; answer = wait; looks = (wait == OPEN || kept(RECORD_BEFORE_LOOK));
        if
        :: held && wait == NONE -> wait = (saw -> DONE : OPEN); answer = wait
        :: else
        fi };
    if :: !held -> goto over :: else fi;
    if :: answer == OPEN && looks -> take(t) :: else fi;
    if :: !held -> goto over :: else fi;
    if :: answer == OPEN -> settle_waiting(t, false); goto over :: else fi;
    assert(answer == wait); /* what this run was told is what a later one will be */
    atomic { locked_by == NOBODY; if :: holds_job -> status = COMPLETED; fence++ :: else fi };
over:
    atomic { mine = 0; knows = false; held = false; saw = false; looks = false; answer = NONE };
    goto next
}

/* `_wake`: look for the wait, lock the job unless somebody has, look again under the lock; ended with the commit. */
inline wake(t) {
    found = (wait == OPEN);
    got = false;
    if :: found -> atomic { if :: locked_by == NOBODY -> locked_by = t; got = true :: else fi } :: else fi;
    writes = got && required(OPEN_UNDER_LOCK_IN_WAKE, wait == OPEN)
}

inline end_wake(t) {
    if
    :: writes ->
        end_wait(DONE);
        if :: status == SCHEDULED -> status = PENDING :: else fi
    :: else
    fi;
    drop_lock(t)
}

/* `emit`, in a transaction of any length. */
proctype Emitter() {
    bool found, got, writes;
    wake(EMITTER);
    atomic { emitted = true; end_wake(EMITTER) }
}

/* `deliver`, once more after the commit. */
proctype Deliverer() {
    bool found, got, writes;
    do
    :: emitted && !delivered ->
        wake(DELIVERER);
        atomic { delivered = !found || got || !kept(LOCKED_STAYS_UNDELIVERED); end_wake(DELIVERER); found = false; got = false; writes = false }
    od
}

/* The clock, and `promote`. */
#define is_due (sleeps -> morning : too_late)
proctype Clock() {
    do
    :: !morning -> morning = true
    :: has_timeout && wait != NONE && !too_late -> too_late = true
    :: atomic { status == SCHEDULED && is_due && locked_by == NOBODY -> status = PENDING }
    od
}

/* Somebody who takes the job away: a rescue, whether its process is dead or not; or an operator who runs it now. */
proctype Changer() {
    do
    :: atomic { may_fail && status == RUNNING && locked_by == NOBODY -> faults--; status = PENDING; fence++ }
    :: atomic { may_fail && status == SCHEDULED && !sleeps && locked_by == NOBODY -> faults--; status = PENDING }
    od
}

/* When nothing is left to do, the workflow has ended, and its effect is there once (promises 1 and 4). */
proctype Promises() {
    timeout ->
    assert(status == COMPLETED && effects == 1 && stepped);
    assert(sleep == DONE && (wait == DONE || wait == TIMED_OUT))
}

init {
    atomic {
        c_code {
            now.without = getenv("WITHOUT") ? atoi(getenv("WITHOUT")) : 0;
            now.faults = getenv("FAULTS") ? atoi(getenv("FAULTS")) : 2;
        };
        if :: has_timeout = true :: has_timeout = false fi;
        run Worker(1); run Worker(2); run Emitter(); run Clock(); run Changer(); run Promises();
        if :: kept(DELIVERY_AFTER_COMMIT) -> run Deliverer() :: else fi
    }
}
