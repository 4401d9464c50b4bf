package engine

import "sync"

// Looks are questions to [Watch] for a list out of turn.
type Looks struct {
	mu    sync.Mutex
	told  []func()
	asked chan struct{} // holds one when there are some
}

// NewLooks makes a Looks without any.
func NewLooks() *Looks { return &Looks{asked: make(chan struct{}, 1)} }

// Ask has told called when Watch has told what the engine answered to a question after now, or
// when it has ended without an answer. If there is no Watch, the next one does it.
func (l *Looks) Ask(told func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, told)
	select {
	case l.asked <- struct{}{}:
	default:
	}
}

// Asked has something when somebody has asked and no Watch knows of it yet.
func (l *Looks) Asked() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.asked
}

// take returns what has been asked for.
func (l *Looks) take() []func() {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	told := l.told
	l.told = nil
	return told
}
