package watch

// batch puts changes together, in the order in which the paths came first.
type batch struct {
	events []*Event
	last   map[string]*Event // by path, that of Rename by To
}

func (b *batch) add(e Event) {
	if b.last == nil {
		b.last = map[string]*Event{}
	}
	at := e.Path
	if e.Op == Rename {
		at = e.To
	}
	old := b.last[e.Path]
	switch {
	case old == nil:
	case e.Op == Remove && old.Op == Create:
		b.drop(old) // it never was
		return
	case e.Op == Remove && (old.Op == Modify || old.Op == Attrib):
		b.drop(old)
	case e.Op == Modify && (old.Op == Create || old.Op == Modify || old.Op == Rename):
		return
	case e.Op == Attrib && old.Op != Remove:
		return
	case e.Op == Modify && old.Op == Attrib:
		old.Op = Modify
		return
	case e.Op == Create && old.Op == Create:
		return
	case e.Op == Create && old.Op == Remove && e.Dir == old.Dir && !e.Dir:
		old.Op = Modify // another file under the name
		return
	}
	x := &e
	b.events = append(b.events, x)
	b.last[at] = x
	if e.Op == Rename {
		delete(b.last, e.Path)
	}
}

func (b *batch) drop(e *Event) {
	delete(b.last, e.Path)
	e.Op = 0
}

// drain returns what was put together and begins anew. What the paths are by now
// decides what becomes of an event.
func (b *batch) drain(exists func(string) bool) []Event {
	var out []Event
	for _, e := range b.events {
		switch e.Op {
		case 0:
			continue // dropped
		case Create, Modify, Attrib:
			if !exists(e.Path) {
				continue // news of its end will come
			}
		case Remove:
			if exists(e.Path) {
				e.Op = Modify
			}
		case Rename:
			if !exists(e.To) {
				continue
			}
		}
		out = append(out, *e)
	}
	*b = batch{}
	return out
}
