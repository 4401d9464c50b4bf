// Package images holds the recipes of the base images that devvm can build,
// one directory each. It holds files only: pkg/image reads and runs them.
//
// A recipe directory has: `packages` (what mmdebstrap installs, from its default
// mirrors), `mmdebstrap.options`, `download` (a hook run at the end of the
// installation), `assemble` (turns the installed tree into disk, kernel
// and initial RAM disk) and the files that assemble takes. Names that begin
// with a variant's name (`trim`, `stock`) are for that variant.
//
// It must import nothing of devvm, and it cannot fail.
package images

import "embed"

// FS holds each recipe under its name.
//
//go:embed all:debian-13
var FS embed.FS
