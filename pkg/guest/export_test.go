package guest

// MixKeys combines the user key of one VM with the host key of another.
func MixKeys(user, host Keys) Keys {
	user.host, user.hostPEM = host.host, host.hostPEM
	return user
}

// SwapVariable is for TestMain: it selects the second process of TestCopyRace.
const SwapVariable = swapVariable

// SwapForever is that process.
func SwapForever(project string) int { return swapForever(project) }
