package machine

import "github.com/devvm/devvm/pkg/ui"

// Steps shows a verb's phases one after another: the start of one is the end
// of the one before it.
type Steps struct {
	*ui.Progress
	running *ui.Phase
}

// Start ends the running phase well and begins the next.
func (s *Steps) Start(name, text string) {
	s.Done()
	s.running = s.Progress.Start(name, text)
}

// Done ends the running phase well. A phase that is not ended when the verb
// returns is shown as failed by [ui.Progress.Close].
func (s *Steps) Done() {
	if s.running != nil {
		s.running.Done()
		s.running = nil
	}
}

// Fail ends the running phase as failed, where something else is tried after it.
func (s *Steps) Fail(err error) {
	if s.running != nil {
		s.running.Fail(err)
		s.running = nil
	}
}
