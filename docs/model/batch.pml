/* The end of a batch: its last members are settled beside each other, a member is added, one that has ended is replayed.

   There are two members, and a third one that somebody adds. Each move is one transaction under READ COMMITTED, a statement a
   step: a read sees what was committed when it began; what a transaction writes, on rows that it has locked, is there for others
   once it commits. All lock members before the batch, so nobody waits in a circle. */

int without; /* the guards that are taken out; check.py gives their numbers in the environment, and that of the faults */
#define kept(guard) ((without & (guard)) == 0)
#define required(guard, condition) (!kept(guard) || (condition))

/* The guards. README.md says which line of the code each of them is. */
#define LOCK_OF_HELD_MEMBER (1 << 0)
#define FREE_MEMBERS_ONLY (1 << 1)
#define LOCK_OF_BATCH (1 << 2)
#define LOOK_UNDER_LOCK_OF_BATCH (1 << 3)
#define SHARE_LOCK_IN_JOIN (1 << 4)
#define LOOK_IN_JOIN (1 << 5)
#define REOPEN_IN_REPLAY (1 << 6)

#define MEMBERS 3
#define ADDED 2
mtype:state = { ABSENT, OPEN, ENDED };

/* What is committed. */
mtype:state state[MEMBERS] = ABSENT;
bool finished = false;

/* Whose transaction has locked each row: that of a member's settle is the member's number + 1. */
#define NOBODY 0
#define OPERATOR 4
byte locked_by[MEMBERS] = NOBODY;
byte batch_by = NOBODY;
bool shared = false; /* by who adds */

/* What only the promises know. */
bool told = false; /* the callbacks were submitted after all that has happened */
byte faults = 0;   /* that are still to come: settles that are rolled back, replays */
#define may_fail (faults > 0)

#define is_open(m, mine) ((m) != mine && state[m] == OPEN)
#define some_is_open(mine) (is_open(0, mine) || is_open(1, mine) || is_open(2, mine))
#define is_free(m) (locked_by[m] == NOBODY)
#define may_hold(m, mine) (is_open(m, mine) && required(FREE_MEMBERS_ONLY, is_free(m)))

inline unlock_all(t) {
    for (u : 0 .. MEMBERS - 1) { if :: locked_by[u] == t -> locked_by[u] = NOBODY :: else fi }
    u = 0;
    if :: batch_by == t -> batch_by = NOBODY :: else fi
}

inline hold(m, t) { holds = true; if :: is_free(m) && kept(LOCK_OF_HELD_MEMBER) -> locked_by[m] = t :: else fi }

/* `settle_members` of one member: take it out of the open ones, hold another one that is open, or else lock the batch and look whether it is over. */
proctype Settler(byte m) {
    byte u, t;
    bool holds, saw_open, finishes;
    t = m + 1;
next:
    atomic { state[m] == OPEN && is_free(m) -> locked_by[m] = t; holds = false; saw_open = false; finishes = false };
    atomic {
        if
        :: may_hold(0, m) -> hold(0, t)
        :: may_hold(1, m) -> hold(1, t)
        :: may_hold(2, m) -> hold(2, t)
        :: !may_hold(0, m) && !may_hold(1, m) && !may_hold(2, m)
        fi };
    if
    :: holds
    :: !holds ->
        if :: !kept(LOOK_UNDER_LOCK_OF_BATCH) -> saw_open = some_is_open(m) :: else fi;
        if :: kept(LOCK_OF_BATCH) -> atomic { batch_by == NOBODY && !shared -> batch_by = t } :: else fi;
        if :: kept(LOOK_UNDER_LOCK_OF_BATCH) -> saw_open = some_is_open(m) :: else fi;
        finishes = (!finished && !saw_open)
    fi;
    atomic {
        if
        :: state[m] = ENDED;
            if
            :: finishes ->
                assert(!finished && !some_is_open(m)); /* the callbacks come once, and not before the end */
                finished = true; told = true
            :: else
            fi
        :: may_fail -> faults--
        fi;
        unlock_all(t) };
    goto next
}

/* `join`, and the commit of who adds. */
proctype Adder() {
    bool joins;
    atomic {
        if
        :: kept(SHARE_LOCK_IN_JOIN) -> batch_by == NOBODY
        :: else
        fi;
        joins = required(LOOK_IN_JOIN, !finished);
        if :: joins && kept(SHARE_LOCK_IN_JOIN) -> shared = true :: else fi };
    if
    :: joins -> atomic { state[ADDED] = OPEN; shared = false; assert(!finished); told = false }
    :: else
    fi
}

/* `replay` of a member that has ended, with `reopen`. */
proctype Operator() {
    byte u, m;
next:
    atomic {
        if
        :: may_fail && state[0] == ENDED && is_free(0) -> m = 0
        :: may_fail && state[1] == ENDED && is_free(1) -> m = 1
        :: may_fail && state[2] == ENDED && is_free(2) -> m = 2
        fi;
        locked_by[m] = OPERATOR; faults-- };
    if :: kept(REOPEN_IN_REPLAY) -> atomic { batch_by == NOBODY && !shared -> batch_by = OPERATOR } :: else fi;
    atomic {
        state[m] = OPEN; told = false;
        if :: kept(REOPEN_IN_REPLAY) -> finished = false :: else fi;
        unlock_all(OPERATOR) };
    goto next
}

/* When nothing is left to do, all members have ended, and somebody was told so after the last one. */
proctype Promises() {
    timeout ->
    assert(!some_is_open(MEMBERS));
    assert(finished && told)
}

init {
    atomic {
        c_code {
            now.without = getenv("WITHOUT") ? atoi(getenv("WITHOUT")) : 0;
            now.faults = getenv("FAULTS") ? atoi(getenv("FAULTS")) : 2;
        };
        state[0] = OPEN; state[1] = OPEN;
        run Settler(0); run Settler(1); run Settler(2); run Adder(); run Operator(); run Promises()
    }
}
