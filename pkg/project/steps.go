package project

import "github.com/devvm/devvm/pkg/ui"

// steps shows a verb's phases one after another: the start of one is the end
// of the one before it.
type steps struct {
	*ui.Progress
	running *ui.Phase
}

// Start ends the running phase well and begins the next.
func (s *steps) Start(name, text string) {
	s.Done()
	s.running = s.Progress.Start(name, text)
}

// Done ends the running phase well. A phase that is not ended when the verb
// returns is shown as failed by [ui.Progress.Close].
func (s *steps) Done() {
	if s.running != nil {
		s.running.Done()
		s.running = nil
	}
}

// Fail ends the running phase as failed, where something else is tried after it.
func (s *steps) Fail(err error) {
	if s.running != nil {
		s.running.Fail(err)
		s.running = nil
	}
}
