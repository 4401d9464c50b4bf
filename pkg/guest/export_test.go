package guest

// MixKeys has the user key of one VM and the host key of another.
func MixKeys(user, host Keys) Keys {
	user.host, user.hostPEM = host.host, host.hostPEM
	return user
}

// For TestMain: the second process of TestCopyRace.
const SwapVariable = swapVariable

// SwapForever is that process.
func SwapForever(project string) int { return swapForever(project) }
