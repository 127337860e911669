/* A limit on how many jobs start in a time: claims count the starts of late, records count them before the handler, turns let in.

   There are two jobs of one scope, in claim order, and a third has just started. One may start in a window of one tick. Each move is one transaction under READ COMMITTED, a statement a step. Time goes on between any two steps, but for one: a
   handler begins at most LATE ticks after its start was recorded, as `Rate.late` says. Counters run down with time. */

int without; /* the guards that are taken out; check.py gives their numbers in the environment, and that of the faults */
#define kept(guard) ((without & (guard)) == 0)

/* The guards. README.md says which line of the code each of them is. */
#define LOCK_FOR_STARTS (1 << 0)
#define COUNTED_FROM_CLAIM (1 << 1)
#define SLOTS_BEFORE_STARTS (1 << 2)
#define RECORD_BEFORE_HANDLER (1 << 3)
#define FENCE_IN_START (1 << 4)
#define LATEST_MOMENT (1 << 5)
#define TURNS (1 << 6)

#define JOBS 2
#define MOST 1
#define WINDOW 1
#define LATE 1
mtype:status = { READY, HELD, RUNNING, ENDED };

/* What is committed. */
mtype:status status[JOBS] = HELD;
bool starts[JOBS];   /* `LimitSlot.starts`: it runs, and is yet to start */
byte owner[JOBS];
byte counts_for[3]; /* the log: how many starts count for so many ticks more, 1 to WINDOW + LATE */
bool turn_is_set = false;
byte turn_in;

#define NOBODY 0
#define WORKER 1 /* and 2 */
#define TURNER 3
#define OPERATOR 4
#define RESCUER 5
byte locked_by[JOBS] = NOBODY;
byte scope_by = NOBODY;

/* What only the promises know. */
byte began_lately;       /* how long the handler that has begun last still counts, in truth */
bool is_recorded[2];     /* this process has recorded a start, and its handler begins within so many ticks */
byte begins_within[2];
byte faults = 0;         /* that are still to come: rescues, cancels, processes that die when they have taken a turn */
#define may_fail (faults > 0)
#define is_free(j) (locked_by[j] == NOBODY)

inline lock_scope(t) { if :: kept(LOCK_FOR_STARTS) -> atomic { scope_by == NOBODY -> scope_by = t } :: else fi }
inline unlock_all(t) {
    for (u : 0 .. JOBS - 1) { if :: locked_by[u] == t -> locked_by[u] = NOBODY :: else fi }
    u = 0;
    if :: scope_by == t -> scope_by = NOBODY :: else fi
}

/* The slots of jobs that are yet to start, but for the one that the transaction has claimed; and the log. */
inline count_slots(mine) {
    to_start = 0;
    for (u : 0 .. JOBS - 1) {
        if :: u != mine && status[u] == RUNNING && starts[u] && kept(COUNTED_FROM_CLAIM) -> to_start++ :: else fi };
    u = 0
}
inline count_starts() {
    started = counts_for[1] + counts_for[2]
}

/* `_set_turns`, for who holds the scope. */
inline set_turn(mine_waits) {
    if
    :: to_start + started >= MOST && (mine_waits || status[0] == HELD || status[1] == HELD) ->
        turn_is_set = kept(TURNS);
        turn_in = WINDOW /* a start that lies ahead counts from now; so does one that is yet to come */
    :: else -> turn_is_set = false; turn_in = 0
    fi
}

/* `let_in`: the first that waits becomes ready when there is room. */
inline let_in(t) {
    if
    :: to_start + started < MOST ->
        if
        :: status[0] == HELD && is_free(0) -> status[0] = READY
        :: !(status[0] == HELD && is_free(0)) && status[1] == HELD && is_free(1) -> status[1] = READY
        :: else
        fi
    :: else
    fi
}

/* `_let_in`, once the scope is locked; that a record may come between its statements is looked at in claims. */
inline look_and_let_in(t) {
    count_slots(JOBS); count_starts();
    let_in(t); set_turn(false); unlock_all(t);
    to_start = 0; started = 0
}

inline begin(w) {
    assert(began_lately == 0); /* never more starts in a window than may be */
    began_lately = WINDOW;
    is_recorded[w] = false; begins_within[w] = 0
}

/* A claim of a ready job, with `admit`; the record of its start, the handler, its end. */
proctype Worker(byte w) {
    byte u, j, t, to_start, started, mine;
    bool admitted;
    t = WORKER + w;
next:
    atomic {
        if
        :: status[0] == READY && is_free(0) -> j = 0
        :: status[1] == READY && is_free(1) -> j = 1
        fi;
        locked_by[j] = t };
    lock_scope(t);
count:
    if
    :: kept(SLOTS_BEFORE_STARTS) ->
        atomic { count_slots(j); mine = to_start };
        atomic { count_starts() };
        atomic { count_slots(j); if :: mine != to_start -> mine = 0; goto count :: else fi } /* one was counted as both */
    :: else -> atomic { count_starts() }; atomic { count_slots(j) }
    fi;
    atomic {
        admitted = (to_start + started < MOST);
        if
        :: admitted -> status[j] = RUNNING; starts[j] = true; owner[j] = t; to_start++
        :: else -> status[j] = HELD
        fi;
        set_turn(!admitted);
        unlock_all(t); mine = 0; to_start = 0; started = 0 };
    atomic { if :: !admitted -> j = 0; goto next :: else -> admitted = false fi };
    if :: !kept(RECORD_BEFORE_HANDLER) -> atomic { begin(w) } :: else fi;
    atomic { /* `record_start` */
        if
        :: owner[j] == t || !kept(FENCE_IN_START) ->
            if :: owner[j] == t -> starts[j] = false :: else fi;
            if :: kept(LATEST_MOMENT) -> counts_for[WINDOW + LATE]++ :: else -> counts_for[WINDOW]++ fi;
            is_recorded[w] = kept(RECORD_BEFORE_HANDLER); begins_within[w] = LATE
        :: else -> j = 0; goto next
        fi };
    if :: kept(RECORD_BEFORE_HANDLER) -> atomic { begin(w) } :: else fi;
    atomic {
        if :: owner[j] == t && is_free(j) -> status[j] = ENDED; owner[j] = NOBODY :: owner[j] != t fi;
        j = 0 };
    goto next
}

/* Time goes on, unless a handler has to begin now; it matters only while something runs down. */
proctype Clock() {
next:
    atomic {
        !(is_recorded[0] && begins_within[0] == 0) && !(is_recorded[1] && begins_within[1] == 0) &&
        (turn_in > 0 || began_lately > 0 || counts_for[1] > 0 || counts_for[2] > 0);
        counts_for[1] = counts_for[2]; counts_for[2] = 0;
        began_lately = (began_lately > 0 -> began_lately - 1 : 0);
        turn_in = (turn_in > 0 -> turn_in - 1 : 0);
        begins_within[0] = (begins_within[0] > 0 -> begins_within[0] - 1 : 0);
        begins_within[1] = (begins_within[1] > 0 -> begins_within[1] - 1 : 0) };
    goto next
}

/* `take_turns`: when the turn of a scope has come, let in who is first; who dies in between leaves it to others. */
proctype Turner() {
    byte u, to_start, started;
next:
    atomic { turn_is_set && turn_in == 0 -> turn_in = 1 };
    if :: may_fail -> faults--; goto next :: true fi;
    lock_scope(TURNER);
    atomic { look_and_let_in(TURNER) };
    goto next
}

/* A rescue of whatever runs: its process is dead, or will find that it has lost its job. */
proctype Rescuer() {
next:
    atomic {
        may_fail;
        if
        :: status[0] == RUNNING && is_free(0) -> status[0] = READY; owner[0] = NOBODY; starts[0] = false
        :: status[1] == RUNNING && is_free(1) -> status[1] = READY; owner[1] = NOBODY; starts[1] = false
        fi;
        faults-- };
    goto next
}

/* A cancel of a job that waits or was let in, and after its commit a look whether another one may take its place. */
proctype Operator() {
    byte u, to_start, started;
next:
    atomic {
        may_fail;
        if
        :: status[0] != RUNNING && status[0] != ENDED && is_free(0) -> status[0] = ENDED
        :: status[1] != RUNNING && status[1] != ENDED && is_free(1) -> status[1] = ENDED
        fi;
        faults-- };
    lock_scope(OPERATOR);
    atomic { look_and_let_in(OPERATOR) };
    goto next
}

/* When nothing is left to do, and time has gone by, every job has ended. */
proctype Promises() {
    timeout ->
    assert(status[0] == ENDED && status[1] == ENDED)
}

init {
    atomic {
        c_code {
            now.without = getenv("WITHOUT") ? atoi(getenv("WITHOUT")) : 0;
            now.faults = getenv("FAULTS") ? atoi(getenv("FAULTS")) : 1;
        };
        status[0] = READY; status[1] = READY; counts_for[WINDOW] = 1; began_lately = WINDOW;
        run Worker(0); run Worker(1); run Rescuer(); run Operator(); run Clock(); run Turner(); run Promises()
    }
}
