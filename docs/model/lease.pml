/* Who is declared dead, and when: one process that beats, another one that watches it, and the clocks.

   Time goes in steps of an eighth of a lease. A step of time waits for whatever is due before it, unless its process is stopped,
   the database is away, or the line is cut: so whoever can be on time is. Ages end at the greatest that anybody compares with. */

int without; /* the guards that are taken out; check.py gives their numbers in the environment, and that of the faults */
#define kept(guard) ((without & (guard)) == 0)
#define required(guard, condition) (!kept(guard) || (condition))

/* The guards. README.md says which line of the code each of them is. */
#define STILL_BY_OWN_CLOCK (1 << 0)
#define EXPIRED_BY_DATABASE (1 << 1)
#define STILL_FOR_LONG (1 << 2)
#define UNBROKEN_CONTACT (1 << 3)
#define OWN_PAUSE (1 << 4)
#define BEAT_IN_RESCUE (1 << 5)
#define GIVING_UP (1 << 6)
#define AGE_FROM_SENDING (1 << 7)

#define LEASE 8
#define BEAT 2
#define GIVE_UP 7 /* a lease less its margin */
#define FOREVER 255
#define LONG (LEASE + 2 * BEAT)
#define age_by(age, most) age = (age < (most) -> age + 1 : (most))

mtype:beat = { NONE, SENT, COMMITTED };

/* The row of the process that is watched. */
byte lease_left = LEASE; /* by the database's clock */
bool has_beaten = false; /* since the last look */
bool declared_dead = false;

/* The process that beats. */
bool ended = false, lost = false, stopped = false, cut = false;
mtype:beat beat = NONE;
byte since_beat = 0, sent_ago = 0, acknowledged_ago = 0;

/* The process that watches it. */
bool watcher_stopped = false, watches = false, verdict = false;
byte still = 0, contact = 0, looked_ago = 0;

bool away = false; /* the database, for both */

/* What only the promises know. */
byte faults = 0, silent = 0, age = 0, waits = 0;
bool jumped = false, stood = false;

#define runs (!ended && !lost && !stopped)
#define reaches (!away && !cut)
#define beat_is_due (runs && beat == NONE && since_beat >= BEAT)
#define is_overdue (runs && kept(GIVING_UP) && acknowledged_ago >= GIVE_UP)
#define look_is_due (!watcher_stopped && looked_ago >= BEAT)
#define verdict_is_due (!watcher_stopped && verdict && !away)
#define beat_goes_on ((beat == SENT && reaches) || (beat == COMMITTED && reaches && runs))
#define something_is_due (beat_is_due || beat_goes_on || is_overdue || look_is_due || verdict_is_due)

proctype Time() {
    do
    :: d_step { !declared_dead && !something_is_due ->
        if :: lease_left > 0 && lease_left != FOREVER -> lease_left-- :: else fi;
        age_by(since_beat, BEAT); age_by(sent_ago, LEASE); age_by(acknowledged_ago, LEASE);
        age_by(still, LONG); age_by(contact, 2 * BEAT); age_by(looked_ago, 2 * BEAT);
        age_by(age, LEASE);
        if :: !away -> age_by(silent, 1) :: else fi;
        if :: ended && !away && !watcher_stopped -> waits++; assert(waits <= 2 * LEASE) :: else fi }
    od
}

proctype Beating() {
    do
    :: atomic { beat_is_due -> beat = SENT; since_beat = 0; sent_ago = 0 }
    :: atomic { beat == SENT && reaches && !declared_dead ->
        beat = COMMITTED; lease_left = LEASE; has_beaten = true; age = 0; silent = 0; stood = stopped; jumped = false; waits = 0 }
    :: atomic { beat == COMMITTED && reaches && runs -> beat = NONE; acknowledged_ago = (kept(AGE_FROM_SENDING) -> sent_ago : 0) }
    /* Its own thread when a beat fails, or the main thread while a beat is not answered. */
    :: atomic { is_overdue -> lost = true }
    od
}

/* `LivenessMonitor.dead`, then `rescue_process`. */
proctype Watching() {
    do
    :: atomic { look_is_due ->
        if
        :: kept(UNBROKEN_CONTACT) && (away || (kept(OWN_PAUSE) && looked_ago >= 2 * BEAT)) -> contact = 0; watches = false
        :: else
        fi;
        if
        :: !away ->
            if :: has_beaten || !watches -> still = 0; has_beaten = false; watches = true :: else fi;
            verdict = required(UNBROKEN_CONTACT, contact >= 2 * BEAT) && (
                (required(EXPIRED_BY_DATABASE, lease_left == 0) && required(STILL_BY_OWN_CLOCK, still >= LEASE / 2)) ||
                (kept(STILL_FOR_LONG) && still >= LONG))
        :: else
        fi;
        looked_ago = 0 }
    :: atomic { verdict_is_due ->
        verdict = false;
        if
        :: required(BEAT_IN_RESCUE, !has_beaten) ->
            declared_dead = true;
            /* Nobody who lives and was heard of within half a lease, or has had no chance to be heard since. */
            assert(ended || lost || (age >= LEASE / 2 && silent > 0));
            /* Nobody whose lease runs, unless the clock has jumped. */
            assert(jumped || age >= LEASE);
            /* Nobody who has not given himself up before, unless he stood still, or the clock has jumped. */
            assert(ended || lost || stood || jumped)
        :: else
        fi }
    od
}

/* Faults begin at any time, and end at any time. A process that has ended, and a clock that has jumped, stay so. */
proctype Faults() {
    do
    :: atomic { faults > 0 && !declared_dead ->
        faults--; waits = 0;
        if
        :: !ended -> ended = true; beat = (beat == COMMITTED -> NONE : beat)
        :: !ended && !stopped -> stopped = true; stood = true
        :: !cut -> cut = true
        :: !away && !(runs && (beat != NONE || since_beat >= BEAT)) -> away = true /* never before it is heard */
        :: !watcher_stopped -> watcher_stopped = true
        :: lease_left = 0; jumped = true
        :: lease_left = FOREVER; jumped = true
        fi }
    :: atomic { stopped && !declared_dead -> stopped = false }
    :: atomic { cut && !declared_dead -> cut = false }
    :: atomic { away && !declared_dead -> away = false; waits = 0 }
    :: atomic { watcher_stopped && !declared_dead -> watcher_stopped = false; waits = 0 }
    od
}

init {
    atomic {
        c_code {
            now.without = getenv("WITHOUT") ? atoi(getenv("WITHOUT")) : 0;
            now.faults = getenv("FAULTS") ? atoi(getenv("FAULTS")) : 2;
        };
        run Time(); run Beating(); run Watching(); run Faults()
    }
}
