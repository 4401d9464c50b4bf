package share

import "time"

// The tuning of what tells the VM of the host's changes and lists directories before it asks.
// A constant without a unit is a count. What a figure was measured with stands in
// docs/performance.md, under "The project's directory"; where no figure is given, none is
// recorded, and the value is a choice for the reason given.

// Lists ahead of the VM's questions: ahead.go.
//
// What they gain as a whole: git status of 20,000 files took 6.7 to 7.6 s without them and 2.9
// to 4.2 s with them when nothing was cached; after ten seconds, 5.0 to 5.8 s and 2.8 to 2.9 s.
const (
	// namesAsked is how many names are asked for in a directory before it is listed.
	// Measured against 12: git status took 3.2 and 3.4 s with 3, and 4.0 and 5.3 s with 12;
	// programs that want 10 names of 100 were no faster with 12 (1.4 s).
	namesAsked = 3
	// filesAsked is namesAsked for what has changed of files that are known.
	filesAsked = 12
	// fewEntries and mostEntries bound the entries of a directory that is listed: to ask for
	// few takes no longer, and of many the VM's kernel takes the names alone.
	fewEntries, mostEntries = 16, 1000
	// fewAhead and manyAhead are how many directories are listed ahead: few with the second
	// of a row, then twice as many each time.
	fewAhead, manyAhead = 4, 64
	// manySiblings is how many entries a directory may have in which the next ones are
	// looked for.
	manySiblings = 2000
	// walkAge is how long it is remembered what was asked for, and listed.
	walkAge = 10 * time.Second
	// manyWalked bounds what of that is remembered.
	manyWalked = 8 << 10
	// aheadBatch is how many directories the agent lists before it is told of changes.
	aheadBatch = 4
	// namesFree is how many names are asked for in a directory before the next call waits
	// for it to be listed. Measured without any wait: the lists came too late for git's 20
	// threads, and 15,000 to 19,000 of 20,000 calls for names remained; with it, 2,000.
	namesFree = 6
	// fewHeld is how many directories may be about to be listed without a call's waiting.
	fewHeld = 2
	// manyWaiting is how many calls wait at once: there is room for others on their
	// connections.
	manyWaiting = 32
	// patienceHeld is how long a call waits. A directory of 100 entries is listed in 7 ms
	// when the VM does nothing else, and in 70 ms beside git's 20 threads.
	patienceHeld = 500 * time.Millisecond
	// justListed is how long after it was listed a directory is not listed again: calls that
	// still arrive were sent before.
	justListed = 2 * time.Second
	// knownAge is for how long the VM knows what it was told of a file (see acregmin where
	// it mounts), from when it asked, and it may have waited for the answer.
	knownAge = 10*time.Second - patienceHeld
	// manyOpens is how many files that the VM knows are asked for in openTime, less
	// openWeight for each that it has to know anew, until that is taken for opening them:
	// lists save no calls then. For walkAge none is made for the sake of known files.
	manyOpens  = 64
	openWeight = 8
	openTime   = time.Second
	// changing is how long after a change a directory is left alone: watchers in the VM
	// would hear of a name that its kernel knows already as changed, and not as new.
	changing = time.Second
)

// Many changes that somebody waits for: fresh.go.
const (
	// fewChanges are done again at once: that is as quick.
	fewChanges = 8
	// manyFresh is how much the agent asks for before it says that it has.
	manyFresh = 1000
	// justTold is how long an answer may be under way to the VM.
	justTold = 100 * time.Millisecond
)

// The host's changes and the server's own: mirror.go.
const (
	// manyPending is how many changes wait for an agent while there is none; of more, the
	// later ones are not told.
	manyPending = 20_000
	// manyDeeds is how many of the server's own changes are remembered.
	manyDeeds = 32 << 10
	// deedAge is how long after a deed its echo may come. Of a file's content and
	// attributes, the time of its last change says whose it was, however late: a file
	// that was written is closed only when it has not been used for a while.
	deedAge = 2 * time.Second
	// patienceDeeds is for calls that are under way when the host's changes are looked at.
	patienceDeeds = 2 * time.Second
	// watchAgain is how long after a failure the directory is watched again.
	watchAgain = 5 * time.Second
	// wroteAge is how long ago the VM may have written a file that the host changes. The
	// VM's kernel writes back every 5 s what is 30 s old.
	wroteAge = time.Minute
	// manyWrote is how many files that the VM has written are remembered.
	manyWrote = 1024
)

// The agent: agent.go.
const (
	// agentGrace is how long an agent may take to end by itself.
	agentGrace = time.Second
	// batchSize is how many events an agent gets before it must say that they are done, and
	// may be asked for something else.
	batchSize = 32
)
