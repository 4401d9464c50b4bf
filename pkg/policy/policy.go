// Package policy holds tests of what binds the whole repository: one package doc for
// each package, who may import what, the licences of dependencies, and no left-overs.
//
// It has no code, nothing imports it, and it needs neither network nor VM.
package policy
