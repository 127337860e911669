/* A limit on how many jobs run at once: claims take its slots, ends give them on, cancels leave, an operator sets the number.

   There are three jobs of one scope and one queue, in claim order: the first two were submitted in one batch, a third may come later.
   Each move is one transaction under READ COMMITTED, a statement a step: a read sees what was committed when it began; what a
   transaction writes, on rows that it has locked, is there for others once it commits. All lock jobs before the scope, and those
   that they let in only as far as nobody else has them, so nobody waits in a circle. */

int without; /* the guards that are taken out; check.py gives their numbers in the environment, and that of the faults */
#define kept(guard) ((without & (guard)) == 0)
#define required(guard, condition) (!kept(guard) || (condition))

/* The guards. README.md says which line of the code each of them is. */
#define LOCK_OF_SCOPES (1 << 0)
#define COUNT_UNDER_LOCK (1 << 1)
#define OWN_SLOT_IS_FREE (1 << 2)
#define WHO_COMES_FIRST (1 << 3)
#define GIVING_ON (1 << 4)
#define GIVING_ON_IN_RESCUE (1 << 5)
#define LEAVING_IN_CANCEL (1 << 6)
#define SCOPES_OF_READY (1 << 7)
#define SWEEP (1 << 8)
#define NOBODY_OVERTAKEN (1 << 9)

#define JOBS 3
#define LATE 2
mtype:status = { ABSENT, READY, HELD, RUNNING, ENDED };
mtype:slot = { NO_SLOT, TAKEN, WAITS }; /* TAKEN by one that is ready: it was let in, and takes no room before it runs */

/* What is committed. */
mtype:status status[JOBS] = ABSENT;
mtype:slot slot[JOBS] = NO_SLOT;
byte owner[JOBS];
byte most = 1;     /* the limit's number */
byte known[2] = 1; /* as each worker process has read it last */

/* Whose transaction has locked each row, and the scope. */
#define NOBODY 0
#define WORKER 1 /* and 2 */
#define RESCUER 3
#define OPERATOR 4
#define SWEEPER 5
#define STRANGER 6 /* a submit that names a job as a dependency */
byte locked_by[JOBS] = NOBODY;
byte scope_by = NOBODY;

/* What only the promises know. */
bool is_swept = false; /* something has happened that nobody is told of but the sweep */
byte faults = 0;       /* that are still to come: rollbacks, releases, rescues, cancels, deleted rows, changes, locks of strangers */
#define may_fail (faults > 0)

#define runs(j) (status[j] == RUNNING && slot[j] == TAKEN)
#define was_let_in(j) (status[j] == READY && slot[j] == TAKEN)
#define waits(j) (status[j] == HELD)
#define comes_first(i, j) (i < j && (waits(i) || status[i] == READY))
#define is_free(j) (locked_by[j] == NOBODY)
#define numbers_max(a, b) ((a) > (b) -> (a) : (b))
#define highest_number numbers_max(most, numbers_max(known[0], known[1]))

inline lock_scope(t) { if :: kept(LOCK_OF_SCOPES) -> atomic { scope_by == NOBODY -> scope_by = t } :: else fi }

inline unlock_all(t) {
    for (u : 0 .. JOBS - 1) { if :: locked_by[u] == t -> locked_by[u] = NOBODY :: else fi }
    u = 0;
    if :: scope_by == t -> scope_by = NOBODY :: else fi
}

/* `slots_taken`, without the job that the transaction has claimed or ended. */
inline count_slots(mine) {
    taken = 0; let_in = 0;
    for (u : 0 .. JOBS - 1) {
        if
        :: u != mine && runs(u) -> taken++
        :: u != mine && was_let_in(u) -> let_in++
        :: else
        fi };
    u = 0
}

/* `Scopes.let_in`: lock the first that wait, as many as there is room for; `own_waits`: so does the job that was claimed. */
inline choose_next(t, mine, own_waits, number) {
    room = (number > taken + let_in -> number - taken - let_in : 0);
    for (u : 0 .. JOBS - 1) {
        if
        :: room > 0 && ((u == mine && own_waits) || (u != mine && waits(u))) ->
            room--;
            if
            :: u == mine -> own_is_next = true
            :: u != mine && is_free(u) -> locked_by[u] = t; next_in[u] = true
            :: u != mine && locked_by[u] == STRANGER -> is_swept = true
            :: else /* a cancel has it, which lets others in */
            fi
        :: else
        fi };
    u = 0
}

inline admit_next() {
    for (u : 0 .. JOBS - 1) {
        if :: next_in[u] && waits(u) -> status[u] = READY; slot[u] = TAKEN :: else fi;
        next_in[u] = false };
    u = 0; room = 0; taken = 0; let_in = 0
}

/* Who is ready and was not let in comes before `who`: `overtaken`. `ended` is ready again, which its settle sees. */
#define is_asking(i) (status[i] == READY && slot[i] == NO_SLOT)
#define comes_before(i, who, ended, again) (i < who && ((i != ended && is_asking(i)) || (i == ended && again)))
#define is_overtaken(who, ended, again) \
    (comes_before(0, who, ended, again) || comes_before(1, who, ended, again) || comes_before(2, who, ended, again))

/* A claim of the first ready job that nobody has locked, with `admit`; then its run, and its end with `give_on`, which may claim
   who is next in place of letting it in. */
proctype Worker(byte w) {
    byte u, j, t, taken, let_in, room, ahead, goes_on;
    bool admitted, own_is_next, again, next_in[JOBS];
    t = WORKER + w;
next:
    atomic {
        if
        :: status[0] == READY && is_free(0) -> j = 0
        :: !(status[0] == READY && is_free(0)) && status[1] == READY && is_free(1) -> j = 1
        :: !(status[0] == READY && is_free(0)) && !(status[1] == READY && is_free(1)) && status[2] == READY && is_free(2) -> j = 2
        fi;
        if :: known[w] = most :: true fi; /* numbers may be a little old */
        locked_by[j] = t; own_is_next = false };
    if :: !kept(COUNT_UNDER_LOCK) -> atomic { count_slots(j) } :: else fi;
    lock_scope(t);
    if :: kept(COUNT_UNDER_LOCK) -> atomic { count_slots(j) } :: else fi;
    if :: !kept(OWN_SLOT_IS_FREE) && slot[j] == TAKEN -> taken++ :: else fi;
    atomic {
        ahead = 0;
        for (u : 0 .. JOBS - 1) { if :: u != j && comes_first(u, j) && kept(WHO_COMES_FIRST) -> ahead++ :: else fi };
        u = 0;
        admitted = (taken + ahead < known[w]) };
    atomic { if :: admitted -> taken++ :: else fi; choose_next(t, j, !admitted, known[w]) };
    atomic {
        if
        :: admitted ->
            status[j] = RUNNING; slot[j] = TAKEN; owner[j] = t;
            count_slots(j);
            assert(taken + 1 <= highest_number); /* never more at once than the limit, as its number was known last */
            for (u : 0 .. JOBS - 1) { if :: u < j && waits(u) && !next_in[u] && is_free(u) -> taken++ :: else fi };
            assert(taken + 1 <= highest_number); /* nor does one start that came later */
            admit_next()
        :: !admitted && !own_is_next -> status[j] = HELD; slot[j] = WAITS; admit_next()
        :: !admitted && own_is_next -> status[j] = READY; slot[j] = TAKEN; admit_next()
        :: may_fail -> faults--; for (u : 0 .. JOBS - 1) { next_in[u] = false }; admitted = false
        fi;
        own_is_next = false; ahead = 0; taken = 0; let_in = 0; room = 0;
        unlock_all(t) };
    if :: !admitted -> goto next :: else fi;
handler:
    /* the handler runs */
    admitted = false; again = false; goes_on = JOBS;
    atomic {
        if
        :: owner[j] == t && status[j] == RUNNING && is_free(j) -> locked_by[j] = t
        :: owner[j] != t || status[j] != RUNNING -> goto next /* taken away: the outcome is dropped */
        fi };
    atomic { if :: may_fail -> faults--; again = true :: true fi }; /* a release, a retry that is due again */
    if
    :: kept(GIVING_ON) ->
        lock_scope(t); atomic { count_slots(j) }; atomic { choose_next(t, j, false, known[w]) };
        atomic {
            if
            :: next_in[0] && required(NOBODY_OVERTAKEN, !is_overtaken(0, j, again)) -> goes_on = 0
            :: next_in[1] && required(NOBODY_OVERTAKEN, !is_overtaken(1, j, again)) -> goes_on = 1
            :: next_in[2] && required(NOBODY_OVERTAKEN, !is_overtaken(2, j, again)) -> goes_on = 2
            :: true /* it has other jobs to run */
            fi }
    :: else
    fi;
    atomic {
        owner[j] = NOBODY; slot[j] = NO_SLOT; status[j] = ENDED;
        if :: again -> status[j] = READY :: else fi;
        if
        :: goes_on < JOBS ->
            next_in[goes_on] = false;
            status[goes_on] = RUNNING; slot[goes_on] = TAKEN; owner[goes_on] = t;
            count_slots(goes_on);
            assert(taken + 1 <= highest_number);
            for (u : 0 .. JOBS - 1) {
                if
                :: u < goes_on && ((waits(u) && !next_in[u] && is_free(u)) || (is_asking(u) && (is_free(u) || u == j))) -> taken++
                :: else
                fi };
            assert(taken + 1 <= highest_number) /* nor here does one start that came later */
        :: else
        fi;
        u = 0; again = false;
        admit_next();
        unlock_all(t) };
    if :: goes_on < JOBS -> j = goes_on; goto handler :: else fi;
    goto next
}

/* `rescue_process`: whoever runs the job, dead or not, has lost it. */
proctype Rescuer() {
    byte u, j, taken, let_in, room;
    bool own_is_next, next_in[JOBS];
next:
    atomic {
        if
        :: may_fail && status[0] == RUNNING && is_free(0) -> j = 0
        :: may_fail && status[1] == RUNNING && is_free(1) -> j = 1
        :: may_fail && status[2] == RUNNING && is_free(2) -> j = 2
        fi;
        locked_by[j] = RESCUER; faults-- };
    if
    :: kept(GIVING_ON_IN_RESCUE) -> lock_scope(RESCUER); atomic { count_slots(j) }; atomic { choose_next(RESCUER, j, false, most) }
    :: else
    fi;
    atomic {
        owner[j] = NOBODY; slot[j] = NO_SLOT;
        if :: status[j] = READY :: status[j] = ENDED fi; /* ended: it has crashed too often */
        admit_next();
        unlock_all(RESCUER) };
    goto next
}

/* `cancel` of a job that waits, `set_limit`, and rows that are deleted by hand. */
proctype Operator() {
    byte u, j, taken, let_in, room;
    bool own_is_next, next_in[JOBS], lets_in;
next:
    atomic {
        if
        :: may_fail && waits(0) && is_free(0) -> j = 0; locked_by[0] = OPERATOR
        :: may_fail && waits(1) && is_free(1) -> j = 1; locked_by[1] = OPERATOR
        :: may_fail && waits(2) && is_free(2) -> j = 2; locked_by[2] = OPERATOR
        :: may_fail && status[0] == READY && is_free(0) -> j = 0; locked_by[0] = OPERATOR
        :: may_fail && status[1] == READY && is_free(1) -> j = 1; locked_by[1] = OPERATOR
        :: may_fail && status[0] == RUNNING && is_free(0) ->
            j = JOBS; status[0] = ENDED; slot[0] = NO_SLOT; owner[0] = NOBODY; is_swept = true
        :: may_fail && most == 1 -> j = JOBS; most = 2
        :: may_fail && most == 2 -> j = JOBS; most = 1
        fi;
        faults-- };
    if :: j == JOBS -> goto next :: else fi;
    atomic {
        status[j] = ENDED;
        lets_in = ((slot[j] != NO_SLOT || kept(SCOPES_OF_READY)) && kept(LEAVING_IN_CANCEL));
        slot[j] = NO_SLOT;
        unlock_all(OPERATOR) };
    if
    :: lets_in -> /* after the commit */
        lock_scope(OPERATOR); atomic { count_slots(JOBS) }; atomic { choose_next(OPERATOR, JOBS, false, most) };
        atomic { admit_next(); unlock_all(OPERATOR) }
    :: else
    fi;
    goto next
}

/* A submit that names a job as a dependency locks its row for as long as its transaction is open. */
proctype Stranger() {
    byte j;
next:
    atomic {
        if
        :: may_fail && waits(1) && is_free(1) -> j = 1
        :: may_fail && waits(2) && is_free(2) -> j = 2
        fi;
        locked_by[j] = STRANGER; faults-- };
    locked_by[j] = NOBODY;
    goto next
}

/* `sweep`, every few seconds. Here it comes only when something has happened that nobody else is told of. */
proctype Sweeper() {
    byte u, taken, let_in, room;
    bool own_is_next, next_in[JOBS];
next:
    is_swept && kept(SWEEP) && ((waits(0) && is_free(0)) || (waits(1) && is_free(1)) || (waits(2) && is_free(2)));
    lock_scope(SWEEPER);
    atomic { count_slots(JOBS) };
    atomic { choose_next(SWEEPER, JOBS, false, most) };
    atomic { admit_next(); unlock_all(SWEEPER) };
    goto next
}

proctype Submitter() { atomic { if :: status[LATE] = READY :: true fi } }

/* When nothing is left to do, every job has ended: none waits beside a free slot. */
proctype Promises() {
    timeout ->
    assert(status[0] == ENDED && status[1] == ENDED && (status[LATE] == ENDED || status[LATE] == ABSENT));
    assert(slot[0] == NO_SLOT && slot[1] == NO_SLOT && slot[LATE] == NO_SLOT)
}

init {
    atomic {
        c_code {
            now.without = getenv("WITHOUT") ? atoi(getenv("WITHOUT")) : 0;
            now.faults = getenv("FAULTS") ? atoi(getenv("FAULTS")) : 2;
        };
        status[0] = READY; status[1] = HELD; slot[1] = WAITS; /* held_at_submit */
        run Worker(0); run Worker(1); run Rescuer(); run Operator(); run Stranger(); run Sweeper();
        run Submitter(); run Promises()
    }
}
