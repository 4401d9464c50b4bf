package share

// recent is a map that forgets what has not been used for long. It has two halves: when the
// younger is full, the older one is dropped.
type recent[K comparable, V any] struct {
	half       int
	young, old map[K]V
}

func newRecent[K comparable, V any](size int) recent[K, V] {
	return recent[K, V]{half: size / 2, young: map[K]V{}}
}

func (r *recent[K, V]) get(k K) (V, bool) {
	v, ok := r.young[k]
	if !ok {
		if v, ok = r.old[k]; ok {
			r.put(k, v)
		}
	}
	return v, ok
}

func (r *recent[K, V]) put(k K, v V) {
	if len(r.young) >= r.half {
		r.old, r.young = r.young, map[K]V{}
	}
	r.young[k] = v
	delete(r.old, k)
}

func (r *recent[K, V]) delete(k K) {
	delete(r.young, k)
	delete(r.old, k)
}
