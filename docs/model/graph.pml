/* Dependencies: submit, settle, wake, fail, cascade, replay, revive, cancel and prune beside each other.

   B waits for A and for D, and C waits for B. Each move is one transaction under READ COMMITTED, a statement a step: a read sees
   what was committed when it began; what a transaction writes, on rows that it has locked, is there for others once it commits.
   Where two transactions wait for each other, the database undoes one, which begins anew. */

int without; /* the guards that are taken out; check.py gives their numbers in the environment, and that of the faults */
#define kept(guard) ((without & (guard)) == 0)
#define required(guard, condition) (!kept(guard) || (condition))

/* The guards. README.md says which line of the code each of them is. */
#define SHARE_LOCK_IN_SUBMIT (1 << 0)
#define EDGES_AFTER_SETTLE (1 << 1)
#define LOCK_IN_WAKE (1 << 2)
#define LOOK_UNDER_LOCK_IN_CASCADE (1 << 3)
#define CASCADE_OF_MAINTENANCE (1 << 4)
#define LOCK_OF_DEPENDENCIES_IN_REVIVAL (1 << 5)
#define REVIVAL_OF_MAINTENANCE (1 << 6)
#define ONLY_FREE_ARE_REVIVED (1 << 7)
#define STATUS_IN_REPLAY (1 << 8)
#define WAITING_IN_FAIL (1 << 9)
#define COUNT_IN_CLAIM (1 << 10)
#define LOOK_UNDER_LOCK_IN_PRUNE (1 << 11)
#define TERMINAL_IN_PRUNE (1 << 12)

#define JOBS 4
#define A 0
#define B 1
#define C 2
#define D 3
#define EDGES 3
mtype:status = { ABSENT, PENDING, RUNNING, COMPLETED, DEAD, FAILED, CANCELLED };
mtype:edge = { NO_EDGE, OPEN, SATISFIED, BROKEN };

/* What is committed. */
mtype:status status[JOBS] = ABSENT;
byte open_count[JOBS];
mtype:edge edge[EDGES] = NO_EDGE;
byte job[EDGES], on[EDGES];
bool runs_anyway[EDGES];

/* Whose transaction has locked each row; those of submits are shared. */
#define NOBODY 0
#define SUBMITTER 1
#define CASCADER 2
#define REVIVER 4 /* the second cascade is 3 */
#define OPERATOR 5
#define PRUNER 6
#define WORKER 7 /* and 8 */
#define TRANSACTIONS 9
byte locked_by[JOBS] = NOBODY;
bool shared[JOBS] = false;
bool waits[TRANSACTIONS] = false;

/* What only the promises know. */
bool has_failed[JOBS] = false;
bool by_hand[JOBS] = false; /* replayed itself, and not because its dependency was */
byte faults = 0;            /* that are still to come: bad ends, replays, cancels, prunes */
#define may_fail (faults > 0)

#define ended_badly(j) (status[j] == DEAD || status[j] == FAILED || status[j] == CANCELLED)
#define ended(j) (status[j] == COMPLETED || ended_badly(j))
#define is_free(j, t) ((locked_by[j] == NOBODY || locked_by[j] == t) && !shared[j])
#define opens(e) (edge[e] == OPEN -> 1 : 0)
#define count_open(j) ((job[0] == j -> opens(0) : 0) + (job[1] == j -> opens(1) : 0) + (job[2] == j -> opens(2) : 0))

inline unlock_all(t) {
    for (u : 0 .. JOBS - 1) { if :: locked_by[u] == t -> locked_by[u] = NOBODY :: else fi }
    u = 0; waits[t] = false
}

/* Lock a row, or wait for it. In a circle of such waits one is undone: to `again`. */
inline lock(j, t) {
    if
    :: atomic { is_free(j, t) -> locked_by[j] = t }
    :: atomic { !is_free(j, t) -> waits[t] = true };
        if
        :: atomic { is_free(j, t) -> locked_by[j] = t; waits[t] = false }
        :: atomic { !is_free(j, t) && ((locked_by[j] != NOBODY && waits[locked_by[j]]) || (shared[j] && waits[SUBMITTER])) ->
            unlock_all(t); goto again }
        fi
    fi
}

/* `lock_jobs`: all rows of a set (bit j), in one order for everybody, so that nobody has one while it waits for another. */
#define one_is_free(set, j, t) (!(set & (1 << j)) || is_free(j, t))
#define set_is_free(set, t) (one_is_free(set, A, t) && one_is_free(set, B, t) && one_is_free(set, C, t) && one_is_free(set, D, t))
#define blocks(j) waits[locked_by[j]]
#define somebody_waits (blocks(A) || blocks(B) || blocks(C) || blocks(D) || waits[SUBMITTER])
inline take_all(set, t) {
    for (u : 0 .. JOBS - 1) { if :: set & (1 << u) -> locked_by[u] = t :: else fi }
    u = 0
}

inline lock_all(set, t) {
    if
    :: atomic { set_is_free(set, t) -> take_all(set, t) }
    :: atomic { !set_is_free(set, t) -> waits[t] = true };
        if
        :: atomic { set_is_free(set, t) -> take_all(set, t); waits[t] = false }
        :: atomic { !set_is_free(set, t) && somebody_waits ->
            unlock_all(t); goto again }
        fi
    fi
}

/* `_satisfy`, once for each edge; `count` is what the lock of the dependent has shown. What was pruned is passed over. */
inline satisfy(e, count) {
    if
    :: edge[e] == NO_EDGE
    :: edge[e] != NO_EDGE ->
        assert(edge[e] == OPEN && open_count[job[e]] > 0);
        edge[e] = SATISFIED; open_count[job[e]]--;
        /* Whoever makes a job ready tells the workers. */
        assert(!(status[job[e]] == PENDING && open_count[job[e]] == 0) || count == 1)
    fi
}

/* `_break` and `_fail`. */
inline break_edge(e) {
    if
    :: edge[e] == NO_EDGE
    :: edge[e] != NO_EDGE ->
        edge[e] = BROKEN; open_count[job[e]] = count_open(job[e]);
        if
        :: required(WAITING_IN_FAIL, status[job[e]] == PENDING) ->
            assert(status[job[e]] == PENDING);
            status[job[e]] = FAILED; has_failed[job[e]] = true
        :: else
        fi
    fi
}

/* `settle_dependents`: what becomes of an open edge to a job that ended badly. */
inline treat(e, count) {
    if
    :: runs_anyway[e] -> satisfy(e, count)
    :: else -> break_edge(e)
    fi
}

/* `open_edges`: the open ones to a job, as committed now. */
inline look_for_edges(j) {
    atomic {
        found = 0;
        for (e : 0 .. EDGES - 1) { if :: on[e] == j && edge[e] == OPEN -> found = found | (1 << e) :: else fi }
        e = 0 }
}

#define dependent_of(j) (j == B -> C : B)

inline lock_dependents(j, t) {
    if
    :: found && kept(LOCK_IN_WAKE) -> lock(dependent_of(j), t)
    :: else
    fi;
    count = open_count[dependent_of(j)]
}

#define is_ready(j) (status[j] == PENDING && required(COUNT_IN_CLAIM, open_count[j] == 0) && is_free(j, NOBODY))

/* Promise 6: whatever a job depended on has completed, unless it runs anyway, or was replayed itself. */
#define is_kept(e) (edge[e] == SATISFIED && (runs_anyway[e] || status[on[e]] == COMPLETED))
#define edge_allows(e, j) (job[e] != j || edge[e] == NO_EDGE || is_kept(e) || (edge[e] != OPEN && by_hand[j]))

/* A worker process: claim a ready job, run it, settle it, and treat its dependents in the same transaction. One runs D, the other
   one the rest. */
proctype Worker(byte t) {
    byte j, u, e, count, found;
    bool completes;
next:
    atomic {
        if
        :: t == WORKER && is_ready(A) -> j = A
        :: t == WORKER && is_ready(B) -> j = B
        :: t == WORKER && is_ready(C) -> j = C
        :: t != WORKER && is_ready(D) -> j = D
        fi;
        assert(edge_allows(0, j) && edge_allows(1, j) && edge_allows(2, j));
        status[j] = RUNNING;
        if :: completes = true :: may_fail -> faults--; completes = false fi }
again:
    if :: !kept(EDGES_AFTER_SETTLE) -> look_for_edges(j) :: else fi;
    lock(j, t);
    if :: kept(EDGES_AFTER_SETTLE) -> look_for_edges(j) :: else fi;
    lock_dependents(j, t);
    atomic {
        assert(status[j] == RUNNING);
        status[j] = (completes -> COMPLETED : DEAD);
        for (e : 0 .. EDGES - 1) {
            if
            :: found & (1 << e) ->
                if :: completes -> satisfy(e, count) :: else -> treat(e, count) fi
            :: else
            fi
        }
        e = 0; found = 0; count = 0; j = 0; completes = false; unlock_all(t) };
    goto next
}

/* `cancel` of a job that waits. */
inline cancel(j, t) {
    lock(j, t);
    if
    :: status[j] == PENDING ->
        look_for_edges(j);
        lock_dependents(j, t);
        atomic {
            status[j] = CANCELLED; has_failed[j] = true;
            for (e : 0 .. EDGES - 1) { if :: found & (1 << e) -> treat(e, count) :: else fi }
        }
    :: else
    fi;
    atomic { e = 0; found = 0; count = 0; unlock_all(t) }
}

/* `continue_cascade`, in two processes: the open edges to jobs that ended badly, and those behind them. */
#define is_left(e) (edge[e] == OPEN && ended_badly(on[e]))
#define fails_by(e) ((found & (1 << e)) && !runs_anyway[e])

proctype Cascade(byte t) {
    byte u, e, count, found, set;
again:
    atomic {
        is_left(0) || is_left(1) || is_left(2) ->
        found = 0;
        for (e : 0 .. EDGES - 1) {
            if
            :: edge[e] == OPEN && (ended_badly(on[e]) || (on[e] == B && (fails_by(0) || fails_by(1)))) -> found = found | (1 << e)
            :: else
            fi
        }
        e = 0 }
    set = (found & 1 -> 1 : 0) | 2 | (found & 4 -> 4 : 0) | (found & 2 -> 8 : 0);
    lock_all(set, t);
    atomic {
        for (e : 0 .. EDGES - 1) {
            if
            :: (found & (1 << e)) && required(LOOK_UNDER_LOCK_IN_CASCADE, edge[e] == OPEN && ended_badly(on[e])) ->
                count = open_count[job[e]];
                treat(e, count)
            :: else
            fi
        }
        e = 0; count = 0; found = 0; set = 0; unlock_all(t) }
    goto again
}

/* `revive_step`: jobs failed by a dependency that is live again. `mine` is being replayed in the same transaction, or JOBS.
   found: bit j. */
#define lives(j, mine) ((j) == mine || !ended_badly(j))
#define is_failed(j, mine) ((j) != mine && status[j] == FAILED)
#define may_revive(e, mine) (edge[e] == BROKEN && is_failed(job[e], mine) && lives(on[e], mine))

inline look_for_failed(mine) {
    atomic {
        found = 0;
        if :: may_revive(0, mine) || may_revive(1, mine) -> found = (1 << B) :: else fi;
        if
        :: may_revive(2, mine) || (found && edge[2] == BROKEN && is_failed(C, mine)) -> found = found | (1 << C)
        :: else
        fi }
}

inline lock_failed(t) {
    set = found;
    if
    :: kept(LOCK_OF_DEPENDENCIES_IN_REVIVAL) ->
        set = set | ((found & 2) && edge[0] == BROKEN -> 1 : 0) | (found & 4 -> 2 : 0);
        set = set | ((found & 2) && edge[1] == BROKEN -> 8 : 0)
    :: else
    fi;
    lock_all(set, t)
}

/* The broken edges are read under the locks, with how their dependencies stand: bit e of each. */
inline read_broken(mine) {
    atomic {
        was_broken = 0; was_live = 0; was_completed = 0;
        for (e : 0 .. EDGES - 1) {
            if
            :: edge[e] == BROKEN && is_failed(job[e], mine) && (found & (1 << job[e])) ->
                was_broken = was_broken | (1 << e);
                if :: lives(on[e], mine) -> was_live = was_live | (1 << e) :: else fi;
                if :: on[e] != mine && status[on[e]] == COMPLETED -> was_completed = was_completed | (1 << e) :: else fi
            :: else
            fi
        }
        e = 0 }
}

inline revive() {
    free = 0;
    if :: (was_broken & 3) && ((was_broken & 3) == (was_live & 3) || !kept(ONLY_FREE_ARE_REVIVED)) -> free = (1 << B) :: else fi;
    if :: (was_broken & 4) && ((was_live & 4) || (free & (1 << B))) -> free = free | (1 << C) :: else fi;
    for (e : 0 .. EDGES - 1) {
        if
        :: was_completed & (1 << e) -> edge[e] = SATISFIED
        :: !(was_completed & (1 << e)) && (was_broken & (1 << e)) &&
            ((was_live & (1 << e)) || (free & (1 << on[e]))) -> edge[e] = OPEN
        :: else
        fi
    }
    e = 0;
    if :: found & (1 << B) -> open_count[B] = count_open(B) :: else fi;
    if :: found & (1 << C) -> open_count[C] = count_open(C) :: else fi;
    if :: free & (1 << B) -> assert(status[B] == FAILED); status[B] = PENDING :: else fi;
    if :: free & (1 << C) -> assert(status[C] == FAILED); status[C] = PENDING :: else fi;
    free = 0; was_broken = 0; was_live = 0; was_completed = 0; found = 0; set = 0
}

proctype Revival() {
    byte u, e, found, set, free, was_broken, was_live, was_completed;
again:
    may_revive(0, JOBS) || may_revive(1, JOBS) || may_revive(2, JOBS);
    look_for_failed(JOBS);
    lock_failed(REVIVER);
    read_broken(JOBS);
    atomic { revive(); unlock_all(REVIVER) };
    goto again
}

/* `replay`: with the dependents that failed by it in the same transaction, or, when there are many, some time afterwards.
   Its own broken edges: it waits for who lives, and no longer for who ended badly. */
#define is_broken(e, j) (job[e] == j && edge[e] == BROKEN)
#define own_dependency(e, j) (is_broken(e, j) -> (1 << on[e]) : 0)
#define still_holds(e) (!ended(on[e]) -> OPEN : SATISFIED)

inline renew(j) {
    for (e : 0 .. EDGES - 1) { if :: is_broken(e, j) -> edge[e] = still_holds(e) :: else fi }
    e = 0;
    open_count[j] = count_open(j)
}

inline replay(j, t) {
    set = (1 << j) | own_dependency(0, j) | own_dependency(1, j) | own_dependency(2, j);
    lock_all(set, t);
    set = 0;
    if
    :: required(STATUS_IN_REPLAY, ended_badly(j)) ->
        if
        :: look_for_failed(j); lock_failed(t); read_broken(j)
        :: skip
        fi;
        atomic {
            assert(ended_badly(j));
            status[j] = PENDING; by_hand[j] = true;
            renew(j);
            revive() }
    :: else
    fi;
    unlock_all(t)
}

#define may_be_moved(j) (status[j] == PENDING || ended_badly(j) || (status[j] == COMPLETED && !kept(STATUS_IN_REPLAY)))

proctype Operator() {
    byte j, u, e, count, found, set, free, was_broken, was_live, was_completed;
    bool is_replay;
next:
    atomic {
        if
        :: may_fail && may_be_moved(A) -> j = A
        :: may_fail && may_be_moved(B) -> j = B
        :: may_fail && may_be_moved(C) -> j = C
        fi;
        is_replay = (status[j] != PENDING);
        faults-- }
again:
    if
    :: is_replay -> replay(j, OPERATOR)
    :: else -> cancel(j, OPERATOR)
    fi;
    goto next
}

/* `submit` of B, and then of C: the dependencies are locked FOR SHARE and looked at; then the job and its edges. */
inline share(j) {
    if
    :: kept(SHARE_LOCK_IN_SUBMIT) ->
        if
        :: atomic { locked_by[j] == NOBODY -> shared[j] = true; saw[j] = status[j] }
        :: atomic { locked_by[j] != NOBODY -> waits[SUBMITTER] = true };
            if
            :: atomic { locked_by[j] == NOBODY -> waits[SUBMITTER] = false; shared[j] = true; saw[j] = status[j] }
            :: atomic { locked_by[j] != NOBODY && waits[locked_by[j]] ->
                waits[SUBMITTER] = false; shared[A] = false; shared[B] = false; shared[D] = false; goto again }
            fi
        fi
    :: else -> saw[j] = status[j]
    fi
}

#define saw_bad(j) (saw[j] == DEAD || saw[j] == FAILED || saw[j] == CANCELLED)

inline insert_edge(e) {
    if
    :: saw[on[e]] == COMPLETED || (saw_bad(on[e]) && runs_anyway[e]) -> edge[e] = SATISFIED
    :: saw_bad(on[e]) && !runs_anyway[e] -> edge[e] = BROKEN
    :: else -> edge[e] = OPEN
    fi
}

#define has_broken(j) (is_broken(0, j) || is_broken(1, j) || is_broken(2, j))

inline insert(j) {
    open_count[j] = count_open(j);
    status[j] = (has_broken(j) -> FAILED : PENDING);
    has_failed[j] = (status[j] == FAILED)
}

proctype Submitter() {
    mtype:status saw[JOBS];
    bool first = true;
again:
    if
    :: first ->
        share(A);
        share(D);
        atomic {
            if
            :: saw[A] != ABSENT && saw[D] != ABSENT -> insert_edge(0); insert_edge(1); insert(B)
            :: else
            fi;
            shared[A] = false; shared[D] = false; first = false; saw[A] = 0; saw[D] = 0 };
        goto again
    :: else ->
        share(B);
        atomic {
            if
            :: saw[B] != ABSENT -> insert_edge(2); insert(C)
            :: else
            fi;
            shared[B] = false; saw[B] = 0 }
    fi
}

/* `prune_batch`: what has ended and no live job needs; its edges go with it. */
#define is_live(j) (status[j] == PENDING || status[j] == RUNNING)
#define needs(e, j) (on[e] == j && edge[e] != NO_EDGE && is_live(job[e]))
#define is_needed(j) (needs(0, j) || needs(1, j) || needs(2, j))

/* No job loses what its submit has found. One that ended badly meanwhile may, before its replay as well as beside it. */
#define loses(e, j) (needs(e, j) && !has_failed[job[e]])

proctype Pruner() {
    byte j, u, e;
next:
    atomic {
        if
        :: may_fail && ended(A) && !is_needed(A) -> j = A
        :: may_fail && ended(B) && !is_needed(B) -> j = B
        fi;
        faults-- }
again:
    lock(j, PRUNER);
    if
    :: required(TERMINAL_IN_PRUNE, ended(j)) && required(LOOK_UNDER_LOCK_IN_PRUNE, !is_needed(j)) ->
        atomic {
            assert(ended(j) && !loses(0, j) && !loses(1, j) && !loses(2, j));
            status[j] = ABSENT;
            for (e : 0 .. EDGES - 1) { if :: on[e] == j || job[e] == j -> edge[e] = NO_EDGE :: else fi }
            e = 0; open_count[j] = 0; by_hand[j] = false }
    :: else
    fi;
    unlock_all(PRUNER);
    goto next
}

/* When nothing is left to do, each job that was submitted has ended (promise 1), its count is that of its open edges, and none
   has failed by a dependency that has been replayed since. */
#define counts_right(j) (open_count[j] == count_open(j))
#define still_broken(e, j) (job[e] == j && edge[e] == BROKEN && (ended_badly(on[e]) || status[on[e]] == ABSENT))
#define still_failed(j) (still_broken(0, j) || still_broken(1, j) || still_broken(2, j))

proctype Promises() {
    timeout ->
    assert(!is_live(A) && !is_live(B) && !is_live(C) && !is_live(D));
    assert(counts_right(A) && counts_right(B) && counts_right(C) && counts_right(D));
    assert(status[B] != FAILED || !has_broken(B) || still_failed(B));
    assert(status[C] != FAILED || !has_broken(C) || still_failed(C))
}

init {
    atomic {
        c_code {
            now.without = getenv("WITHOUT") ? atoi(getenv("WITHOUT")) : 0;
            now.faults = getenv("FAULTS") ? atoi(getenv("FAULTS")) : 2;
        };
        on[0] = A; job[0] = B; on[1] = D; job[1] = B; on[2] = B; job[2] = C;
        status[D] = PENDING;
        if
        :: status[A] = DEAD; status[D] = DEAD
        :: status[A] = DEAD
        :: status[A] = PENDING
        :: status[A] = PENDING; runs_anyway[1] = true; runs_anyway[2] = true
        fi;
        run Worker(WORKER); run Worker(WORKER + 1); run Submitter(); run Operator(); run Pruner(); run Promises();
        if :: kept(CASCADE_OF_MAINTENANCE) -> run Cascade(CASCADER) :: else fi;
        if :: kept(CASCADE_OF_MAINTENANCE) && runs_anyway[2] -> run Cascade(CASCADER + 1) :: else fi;
        if :: kept(REVIVAL_OF_MAINTENANCE) -> run Revival() :: else fi
    }
}
