package machine

import "github.com/devvm/devvm/pkg/ui"

// Steps shows the phases of a verb, one after another: the start of one ends the one before.
type Steps struct {
	*ui.Progress
	running *ui.Phase
}

// Start ends the running phase as done and begins the next.
func (s *Steps) Start(name, text string) {
	s.Done()
	s.running = s.Progress.Start(name, text)
}

// Done ends the running phase as done. If a phase has not ended when the verb returns,
// [ui.Progress.Close] shows it as failed.
func (s *Steps) Done() {
	if s.running != nil {
		s.running.Done()
		s.running = nil
	}
}

// Fail ends the running phase as failed, when the verb goes on with something else.
func (s *Steps) Fail(err error) {
	if s.running != nil {
		s.running.Fail(err)
		s.running = nil
	}
}
