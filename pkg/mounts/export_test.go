package mounts

// OwnPaths are the paths of the table of the VM's own, in its order.
func OwnPaths() []string {
	var all []string
	for _, o := range ownPaths {
		all = append(all, o.path)
	}
	return all
}
