package share

import "time"

// The limits and times of the mirror. A constant without a unit is a count. docs/performance.md,
// "The project's directory", says what the figures were measured with. Where there is no figure,
// none was recorded, and the value is a choice for the reason given.

// Directories listed ahead: ahead.go.
//
// The gain as a whole: git status of 20,000 files with nothing cached took 6.7 to 7.6 s without
// the lists and 2.9 to 4.2 s with them; ten seconds later, 5.0 to 5.8 s and 2.8 to 2.9 s.
const (
	// namesAsked is how many names are asked for in a directory before it is listed.
	// Measured against 12: git status took 3.2 and 3.4 s with 3, and 4.0 and 5.3 s with 12;
	// programs that want 10 names of 100 were no faster with 12 (1.4 s).
	namesAsked = 3
	// filesAsked is the same for known files that are asked for again.
	filesAsked = 12
	// fewEntries and mostEntries limit the entries of a directory that is listed. Asking for a
	// few one by one takes no longer, and of too many the VM's kernel takes the names alone.
	fewEntries, mostEntries = 16, 1000
	// fewAhead and manyAhead are how many directories are listed ahead: fewAhead after the
	// second in a row, then twice as many each time, up to manyAhead.
	fewAhead, manyAhead = 4, 64
	// manySiblings is how many entries a directory may have whose subdirectories are listed
	// ahead.
	manySiblings = 2000
	// walkAge is how long questions and lists are remembered.
	walkAge = 10 * time.Second
	// manyWalked is how many of them are remembered.
	manyWalked = 8 << 10
	// aheadBatch is how many directories the agent lists before it is told of changes.
	aheadBatch = 4
	// namesFree is how many names are asked for in a directory before the next call waits
	// for it to be listed. Measured without any wait: the lists came too late for git's 20
	// threads, and 15,000 to 19,000 of 20,000 calls for names remained; with it, 2,000.
	namesFree = 6
	// fewHeld is how many directories may be queued before calls wait for them.
	fewHeld = 2
	// manyWaiting is how many calls may wait at once. It leaves room for other calls on their
	// connections.
	manyWaiting = 32
	// patienceHeld is how long a call waits at most. Listing a directory of 100 entries takes
	// 7 ms when the VM does nothing else, and 70 ms beside git's 20 threads.
	patienceHeld = 500 * time.Millisecond
	// justListed is how long a directory is not listed again: calls that arrive in that time
	// were sent before the list.
	justListed = 2 * time.Second
	// knownAge is how long the VM trusts what it was told about a file (acregmin of its mount).
	// That counts from the question, whose answer may have come patienceHeld later.
	knownAge = 10*time.Second - patienceHeld
	// manyOpens is how many questions in openTime about files that the VM still trusts mean
	// that a program opens files. Each question about one that it no longer trusts takes
	// openWeight off. Lists save no calls then, so known files cause none for walkAge.
	manyOpens  = 64
	openWeight = 8
	openTime   = time.Second
	// changing is how long a directory that has changed is not listed: if the VM's kernel
	// learned of a new name that way, watchers would hear that it has changed, not that it is
	// new.
	changing = time.Second
)

// Many changes at once: fresh.go.
const (
	// fewChanges is how many changes are simply repeated, which is as quick.
	fewChanges = 8
	// manyFresh is how much the agent is told to ask for in one order.
	manyFresh = 1000
	// justTold is how long an answer may take to reach the VM.
	justTold = 100 * time.Millisecond
)

// The host's changes and the server's own: mirror.go.
const (
	// manyPending is how many changes wait for an agent at most. Later ones are lost.
	manyPending = 20_000
	// manyDeeds is how many of the server's own changes are remembered.
	manyDeeds = 32 << 10
	// deedAge is how long after a deed its echo may come. For the content and attributes of a
	// file, its ctime tells who made the change, however late the event is: a file that was
	// written is closed only when it has not been used for a while.
	deedAge = 2 * time.Second
	// patienceDeeds is how long events wait for the calls that were under way when they came.
	patienceDeeds = 2 * time.Second
	// watchAgain is how long after a failure watching starts again.
	watchAgain = 5 * time.Second
	// wroteAge is how long a file that the VM has written counts as written by both sides when
	// the host changes it. The VM's kernel writes back every 5 s what is 30 s old.
	wroteAge = time.Minute
	// manyWrote is how many files that the VM has written are remembered.
	manyWrote = 1024
)

// The agent: agent.go.
const (
	// agentGrace is how long an agent may take to end before it is killed.
	agentGrace = time.Second
	// batchSize is how many events an agent gets at once. Then it reports that they are done,
	// and may get other orders.
	batchSize = 32
)
