package machine

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/devvm/devvm/pkg/disk"
)

// DiskName is the name of a disk in the directory of an image, a template or a VM.
const DiskName = "disk.qcow2"

// The stores that hold the disks below a VM's disk.
const (
	KindImage    = "image"
	KindTemplate = "template"
)

// longestChain is more than the longest chain of disks: a project's, two templates' and an
// image's.
const longestChain = 8

// Below returns the backing files of a disk, uppermost first: those of templates and, last, an
// image's. If a disk has others, it is damaged.
func Below(ctx context.Context, path string) ([]string, error) { return Chains{}.Below(ctx, path) }

// Chains remembers the backing files of templates, which never change.
type Chains map[string]string

// Below is the function [Below] with this memory.
func (c Chains) Below(ctx context.Context, path string) ([]string, error) {
	var all []string
	for range longestChain {
		backing := c[path]
		if backing == "" {
			info, err := disk.Stat(ctx, path)
			if err != nil {
				return all, err
			}
			backing = info.Backing
		}
		if backing == "" {
			return all, fmt.Errorf("%w: %s names no backing file", disk.ErrDamaged, path)
		}
		if kind, _ := StoreOf(path); kind != "" {
			c[path] = backing
		}
		all = append(all, backing)
		switch kind, _ := StoreOf(backing); kind {
		case KindImage:
			return all, nil
		case KindTemplate:
			path = backing
		default:
			return all, fmt.Errorf("%w: the backing file of %s is %s, which belongs to no image or template", disk.ErrDamaged, path, backing)
		}
	}
	return all, fmt.Errorf("%w: the backing files of %s form a loop", disk.ErrDamaged, path)
}

// StoreOf returns what a file in one of the stores belongs to, by its path: an image or a
// template, with its digest or ID.
func StoreOf(path string) (kind, id string) {
	dir := filepath.Dir(path)
	switch filepath.Base(filepath.Dir(dir)) {
	case "images":
		kind = KindImage
	case "templates":
		kind = KindTemplate
	}
	return kind, filepath.Base(dir)
}
