package share

import "testing"

// SetHostUser has a test see the host's files as another user's than its own, who may be
// root.
func SetHostUser(t *testing.T, uid, gid uint32) {
	old := hostUser
	hostUser = owner{uid: uid, gid: gid}
	t.Cleanup(func() { hostUser = old })
}
