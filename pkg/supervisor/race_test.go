//go:build race

package supervisor_test

const raced = true
