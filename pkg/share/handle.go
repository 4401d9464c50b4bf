package share

import (
	"encoding/binary"
	"hash/fnv"

	"golang.org/x/sys/unix"
)

// key identifies an object of an export for as long as the object exists.
type key struct {
	dev uint16 // 0 for the device of the export's root, else a hash of the device
	ino uint64 // 0 for the root itself, whichever directory that is now
}

// handle names an object to the VM. It must hold all that a new server needs to find the
// object again, and stay the same for as long as the object exists, because to the VM
// another handle is another object.
type handle struct {
	export uint32
	key
	// born is a hash of when the object was made: another object may get the same
	// inode number later.
	born uint32
	// trail has one byte for each directory between the root and the object when the handle
	// was made, outermost first: a hash of its inode number.
	trail string
}

const (
	handleVersion = 1
	handleHead    = 20
	maxTrail      = 64 - handleHead // the trail of a deeper object is cut off here
)

func (h handle) encode() []byte {
	b := make([]byte, 0, handleHead+len(h.trail))
	b = append(b, handleVersion, 0)
	b = binary.BigEndian.AppendUint32(b, h.export)
	b = binary.BigEndian.AppendUint16(b, h.dev)
	b = binary.BigEndian.AppendUint64(b, h.ino)
	b = binary.BigEndian.AppendUint32(b, h.born)
	return append(b, h.trail...)
}

func decodeHandle(b []byte) (handle, bool) {
	if len(b) < handleHead || len(b) > handleHead+maxTrail || b[0] != handleVersion || b[1] != 0 {
		return handle{}, false
	}
	return handle{
		export: binary.BigEndian.Uint32(b[2:]),
		key:    key{dev: binary.BigEndian.Uint16(b[6:]), ino: binary.BigEndian.Uint64(b[8:])},
		born:   binary.BigEndian.Uint32(b[16:]),
		trail:  string(b[handleHead:]),
	}, true
}

// ghostMark is the second byte of a handle that the observer made for an object that was gone
// before the VM knew it. For everyone else its object no longer exists.
const ghostMark = 1

func isGhost(data []byte) bool { return len(data) >= handleHead && data[1] == ghostMark }

// crumb is a directory's byte in a trail.
func crumb(ino uint64) byte {
	ino ^= ino >> 32
	ino ^= ino >> 16
	return byte(ino ^ ino>>8)
}

// hash64 hashes strings and numbers. The result is the same in each run.
func hash64(parts ...any) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		if s, ok := p.(string); ok {
			p = []byte(s)
		}
		_ = binary.Write(h, binary.BigEndian, p) // a hash does not fail
	}
	return h.Sum64()
}

// bornOf is the birth time as a handle has it: 0 if the file system has none.
func bornOf(st *unix.Statx_t) uint32 {
	if st.Mask&unix.STATX_BTIME == 0 {
		return 0
	}
	return hashTime(st.Btime)
}

func hashTime(t unix.StatxTimestamp) uint32 {
	n := uint64(t.Sec)*1_000_000_007 + uint64(t.Nsec)
	return uint32(n ^ n>>32)
}
