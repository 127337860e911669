/* Claim, run, settle, release, stop, crash, rescue, cancel, and replies that are lost: one job, two worker processes.

   There is no clock here. A process may stand still for as long as you like between any two steps, and may be declared dead at
   any moment, so what holds here holds under every jump of a clock; `lease.pml` says when somebody is declared dead. A step is
   what one statement, one commit or one lock in memory makes indivisible. Each kind of fault has a budget, so each run ends. */

int without; /* the guards that are taken out; check.py gives their numbers in the environment, and that of the faults */
#define kept(guard) ((without & (guard)) == 0)
#define required(guard, condition) (!kept(guard) || (condition))

/* The guards. README.md says which line of the code each of them is. */
#define LOCK_IN_CLAIM (1 << 0)
#define LEASE_IN_CLAIM (1 << 1)
#define LEASE_IN_BEAT (1 << 2)
#define FENCE_IN_COMPLETE (1 << 3)
#define FENCE_IN_END (1 << 4)
#define FENCE_IN_RELEASE (1 << 5)
#define FENCE_IN_LETTING_GO (1 << 6)
#define READING_BACK (1 << 7)
#define TWO_LOOKS (1 << 8)
#define CLAIMS_IN_FLIGHT (1 << 9)
#define LOST_RELEASES_NOTHING (1 << 10)
#define ATTEMPT_AT_SHUTDOWN (1 << 11)
#define RESCUE_OF_NAMELESS (1 << 12)
#define END_OF_SESSIONS (1 << 13)
#define CANCEL_AFTER_RUN (1 << 14)
#define CANCEL_AFTER_RELEASE (1 << 15)
#define CANCEL_AFTER_CRASH (1 << 16)
#define HELD_UNTIL_SETTLED (1 << 17)
#define STARTED_OR_HANDED_BACK (1 << 18)

#define PROCESSES 2
#define PLACES 2 /* for runs of the job in one process: an old one may still go on */
#define MOST_FAULTS 5
#define IDS (1 + PROCESSES + MOST_FAULTS)
#define NOBODY 0

mtype:status = { PENDING, RUNNING, SCHEDULED, COMPLETED, CANCELLED };
mtype:row = { NO_ROW, LIVE, DEAD };
mtype:place = { FREE, WAITING, STARTED, COMMITTING, OK, FAILED, HANDED_BACK };
mtype:claim = { NONE, OPEN, COMMITTED };

/* What the database holds. */
mtype:status status = PENDING;
byte fence = 0, worker = NOBODY, attempts = 0;
bool cancel_requested = false;
mtype:row row[IDS] = NO_ROW;
byte locked_by = NOBODY; /* whose open transaction has locked the job's row */

/* What a worker process remembers. */
typedef Process {
    byte id;
    bool lost, stopping;
    mtype:claim claim = NONE;
    byte claimed;         /* the fence of the claim whose reply is on its way */
    bool claim_is_old;    /* it was on its way at the first look already */
    byte held;            /* the fence of the job that it holds; 0: it holds none */
    mtype:place place[PLACES] = FREE;
    byte under[PLACES];   /* the fence of each run */
    bool again[PLACES];   /* its settle was sent before, and not answered */
    bool looking, claims_answered;
    byte saw_held, unheld; /* `unheld`: the fence of the row that the first look found unheld */
};
Process p[PROCESSES];
byte ids = 0;

/* What only the promises know. */
bool atomic_job = false;
byte starts = 0, effects = 0;
short settled = 0; /* bit f: the run under fence f was settled by its process */
short dead = 0;    /* bit n: process n was declared dead */
bool cancel_heard = false;
byte faults = 0; /* that are still to come: crashes, replies that are lost, verdicts on who lives, stops, failures, cancels */

#define has_ended (status == COMPLETED || status == CANCELLED)
#define held_by(who) (status == RUNNING && worker == (who))
#define may_start (!p[i].lost && !p[i].stopping)
#define no_lock (locked_by == NOBODY)
#define may_fail (faults > 0)
#define is_settling (p[i].place[k] == OK || p[i].place[k] == FAILED)

/* A new process registers in the place of one that has ended. */
inline begin() {
    ids++;
    p[i].id = ids; row[ids] = LIVE;
    p[i].lost = false; p[i].stopping = false;
    p[i].claim = NONE; p[i].claimed = 0; p[i].claim_is_old = false; p[i].held = 0;
    p[i].place[0] = FREE; p[i].under[0] = 0; p[i].again[0] = false;
    p[i].place[1] = FREE; p[i].under[1] = 0; p[i].again[1] = false;
    p[i].looking = false; p[i].claims_answered = false; p[i].saw_held = 0; p[i].unheld = 0
}

inline end_claim() { p[i].claim = NONE; p[i].claimed = 0; p[i].claim_is_old = false }

inline commit_claim() {
    assert(status == PENDING && !cancel_heard);
    status = RUNNING; fence++; worker = p[i].id; locked_by = NOBODY
}

/* A claim that was sent may commit although the process has ended. Of a host that lost its power the session stays. */
inline end_process(may_leave_session) {
    if
    :: locked_by == p[i].id && p[i].claim == OPEN -> commit_claim()
    :: locked_by == p[i].id -> locked_by = NOBODY
    :: locked_by == p[i].id && may_leave_session
    :: locked_by != p[i].id
    fi;
    begin()
}

inline let_go() {
    if
    :: required(FENCE_IN_LETTING_GO, p[i].held == p[i].under[k]) -> p[i].held = 0
    :: else
    fi
}

inline drop_run() { let_go(); p[i].place[k] = FREE; p[i].under[k] = 0; p[i].again[k] = false }

inline keep_for_again() {
    faults--;
    p[i].again[k] = true;
    if :: kept(HELD_UNTIL_SETTLED) :: else -> let_go() fi
}

/* The row is left by a run, in one transaction; whoever asked to cancel is heard in it. */
inline wait_again(new_status, guard) {
    fence++;
    if
    :: kept(guard) && cancel_requested -> status = CANCELLED; fence++
    :: else -> status = new_status
    fi
}

inline crashed() {
    fence++; attempts++;
    if
    :: kept(CANCEL_AFTER_CRASH) && cancel_requested -> status = CANCELLED
    :: else -> status = SCHEDULED
    fi
}

/* A write by the holder of a run: promise 3. */
inline write_as_holder() {
    assert(status == RUNNING && fence == p[i].under[k] && worker == p[i].id);
    settled = settled | (1 << fence)
}

proctype Worker(byte i; byte k) {
    do
    /* Claim: the row is picked and locked, by what a snapshot shows of the lease; the commit; the reply. */
    :: atomic { k == 0 && may_start && p[i].claim == NONE && (p[i].place[0] == FREE || p[i].place[1] == FREE) &&
        status == PENDING && required(LOCK_IN_CLAIM, no_lock) && required(LEASE_IN_CLAIM, row[p[i].id] == LIVE) ->
        assert(!(dead & (1 << p[i].id)));
        p[i].claim = OPEN; locked_by = p[i].id }
    :: atomic { k == 0 && p[i].claim == OPEN ->
        if
        :: required(LOCK_IN_CLAIM, locked_by == p[i].id) -> commit_claim(); p[i].claim = COMMITTED; p[i].claimed = fence
        :: else -> end_claim() /* its session was ended */
        fi }
    :: atomic { k == 0 && p[i].claim == COMMITTED ->
        if
        :: p[i].held = p[i].claimed;
            if
            :: p[i].place[0] == FREE -> p[i].place[0] = WAITING; p[i].under[0] = p[i].claimed
            :: else -> p[i].place[1] = WAITING; p[i].under[1] = p[i].claimed
            fi
        :: may_fail -> faults--
        fi;
        end_claim() }

    /* The handler starts: promise 2. */
    :: atomic { p[i].place[k] == WAITING && may_start ->
        p[i].place[k] = STARTED;
        starts++;
        assert(starts <= 1 + attempts) }

    /* A job that has not started is handed back, and is held until that is answered. */
    :: atomic { p[i].place[k] == WAITING && !p[i].lost && (p[i].stopping || may_fail) ->
        if :: p[i].stopping :: else -> faults-- fi;
        p[i].place[k] = HANDED_BACK }
    :: atomic { (p[i].place[k] == HANDED_BACK || (!kept(STARTED_OR_HANDED_BACK) && p[i].place[k] == STARTED)) && no_lock ->
        if
        :: required(FENCE_IN_RELEASE, fence == p[i].under[k] && status == RUNNING) ->
            assert(fence == p[i].under[k] && held_by(p[i].id));
            wait_again(PENDING, CANCEL_AFTER_RELEASE)
        :: else
        fi;
        if
        :: p[i].place[k] == HANDED_BACK -> drop_run()
        :: p[i].place[k] == HANDED_BACK && may_fail -> faults--
        :: p[i].place[k] == STARTED
        fi }

    /* The handler returns, or raises; what a process that is lost still ran is dropped. */
    :: atomic { p[i].place[k] == STARTED && p[i].lost -> drop_run() }
    :: atomic { p[i].place[k] == STARTED && !p[i].lost && !atomic_job -> p[i].place[k] = OK }
    :: atomic { p[i].place[k] == STARTED && !p[i].lost && may_fail -> faults--; p[i].place[k] = FAILED }

    /* An atomic handler completes its job in its own transaction: the row under its fence, then the commit. */
    :: atomic { p[i].place[k] == STARTED && !p[i].lost && atomic_job && no_lock ->
        if
        :: required(FENCE_IN_COMPLETE, fence == p[i].under[k]) -> p[i].place[k] = COMMITTING; locked_by = p[i].id
        :: else -> drop_run()
        fi }
    :: atomic { p[i].place[k] == COMMITTING ->
        if
        :: locked_by == p[i].id ->
            write_as_holder();
            effects++; status = COMPLETED; fence++; locked_by = NOBODY;
            if
            :: drop_run()
            :: may_fail -> faults--; p[i].place[k] = FAILED
            fi
        :: else -> p[i].place[k] = FAILED /* its session was ended */
        fi }

    /* Settle: under the fence; again until that is answered, but for what is on record. */
    :: atomic { is_settling && p[i].lost -> drop_run() }
    :: atomic { is_settling && !p[i].lost && may_fail && !p[i].again[k] -> keep_for_again() } /* it never arrived */
    :: atomic { p[i].place[k] == OK && !p[i].lost && no_lock ->
        if
        :: p[i].again[k] && kept(READING_BACK) && fence == p[i].under[k] + 1 && status == COMPLETED ->
            assert(settled & (1 << p[i].under[k]));
            drop_run()
        :: else ->
            if
            :: required(FENCE_IN_COMPLETE, fence == p[i].under[k]) ->
                write_as_holder();
                status = COMPLETED; fence++;
                if
                :: drop_run()
                :: may_fail -> keep_for_again()
                fi
            :: else -> /* it is told that the run was lost */
                assert(!(settled & (1 << p[i].under[k])));
                drop_run()
            fi
        fi }
    :: atomic { p[i].place[k] == FAILED && !p[i].lost && no_lock ->
        if
        :: required(FENCE_IN_END, fence == p[i].under[k]) ->
            write_as_holder();
            attempts++;
            wait_again(SCHEDULED, CANCEL_AFTER_RUN);
            if
            :: drop_run()
            :: may_fail -> keep_for_again()
            fi
        :: else -> drop_run()
        fi }

    /* A look at the rows that name the process: first what it holds, then the rows. What two looks in a row found unheld under
       the same fence is handed back, unless a claim has been on its way since the first of them. */
    :: atomic { k == 0 && !p[i].looking && required(LOST_RELEASES_NOTHING, !p[i].lost) &&
        held_by(p[i].id) && p[i].held != fence &&
        (p[i].unheld != fence || required(CLAIMS_IN_FLIGHT, !p[i].claim_is_old)) ->
        p[i].looking = true;
        p[i].claims_answered = required(CLAIMS_IN_FLIGHT, !p[i].claim_is_old);
        p[i].saw_held = p[i].held }
    :: atomic { k == 0 && p[i].looking && no_lock ->
        p[i].looking = false;
        if
        :: held_by(p[i].id) && p[i].saw_held != fence ->
            if
            :: required(TWO_LOOKS, p[i].unheld == fence) && p[i].claims_answered ->
                wait_again(PENDING, CANCEL_AFTER_RELEASE); p[i].unheld = 0
            :: else -> p[i].unheld = fence; p[i].claim_is_old = (p[i].claim != NONE)
            fi
        :: else -> p[i].unheld = 0
        fi }

    /* It is asked to stop. Once its hands are empty, or its grace is over, it hands back what names it, and leaves. */
    :: atomic { k == 0 && may_start && may_fail -> faults--; p[i].stopping = true }
    :: atomic { k == 0 && p[i].stopping && !p[i].lost && no_lock && held_by(p[i].id) ->
        wait_again(PENDING, CANCEL_AFTER_RELEASE);
        if :: kept(ATTEMPT_AT_SHUTDOWN) -> attempts++ :: else fi }
    :: atomic { k == 0 && p[i].stopping && !p[i].lost && !held_by(p[i].id) -> row[p[i].id] = NO_ROW; end_process(false) }

    /* A beat finds that the process was declared dead. Or nobody answers for nearly a lease, and it gives itself up. */
    :: atomic { k == 0 && !p[i].lost && row[p[i].id] != LIVE ->
        if
        :: row[p[i].id] == DEAD && !kept(LEASE_IN_BEAT) -> row[p[i].id] = LIVE
        :: else -> p[i].lost = true
        fi }
    :: atomic { k == 0 && !p[i].lost && row[p[i].id] == LIVE && may_fail -> faults--; p[i].lost = true }
    :: atomic { k == 0 && p[i].lost -> end_process(false) }

    /* SIGKILL, or a host without power. */
    :: atomic { k == 0 && may_fail -> faults--; end_process(true) }
    od
}

/* An operator, and the promotion of what is due. */
proctype Others() {
    do
    :: atomic { status == SCHEDULED && no_lock -> status = PENDING }
    :: atomic { may_fail && !has_ended && no_lock ->
        faults--; cancel_heard = true;
        if
        :: status == RUNNING -> cancel_requested = true
        :: else -> status = CANCELLED; fence++
        fi }
    od
}

/* Whoever rescues process n: each step is a transaction of its own, and anybody may do the next one. */
proctype Rescuer(byte n) {
    do
    /* It is declared dead: one that has ended, has given itself up, or, by mistake, one that lives. */
    :: atomic { row[n] == LIVE && (p[0].id != n || p[0].lost) && (p[1].id != n || p[1].lost) ->
        row[n] = DEAD; dead = dead | (1 << n) }
    :: atomic { row[n] == LIVE && may_fail && ((p[0].id == n && !p[0].lost) || (p[1].id == n && !p[1].lost)) ->
        faults--; row[n] = DEAD; dead = dead | (1 << n) }
    :: atomic { row[n] == DEAD && locked_by == n && kept(END_OF_SESSIONS) -> locked_by = NOBODY }
    :: atomic { row[n] == DEAD && held_by(n) && no_lock -> crashed() }
    :: atomic { row[n] == DEAD && locked_by != n && !held_by(n) -> row[n] = NO_ROW }
    :: atomic { row[n] == NO_ROW && held_by(n) && no_lock && kept(RESCUE_OF_NAMELESS) -> crashed() }
    od
}

/* Promise 1: when nothing is left to do, the job has ended. Promise 4: an atomic handler's effects are there exactly once. */
proctype Promises() {
    timeout ->
    assert(has_ended);
    assert(effects == (atomic_job && status == COMPLETED -> 1 : 0));
    assert(p[0].held == 0 && p[1].held == 0)
}

init {
    atomic {
        byte i;
        c_code {
            now.without = getenv("WITHOUT") ? atoi(getenv("WITHOUT")) : 0;
            now.faults = getenv("FAULTS") ? atoi(getenv("FAULTS")) : 2;
        };
        assert(faults <= MOST_FAULTS);
        for (i : 0 .. PROCESSES - 1) { begin(); run Worker(i, 0); run Worker(i, 1) }
        for (i : 1 .. IDS - 1) { run Rescuer(i) }
        run Others(); run Promises();
        if :: atomic_job = true :: atomic_job = false fi
    }
}
