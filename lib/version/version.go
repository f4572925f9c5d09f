// Package version holds what every program's --version prints.
package version

// Version is set by the linker, from debian/changelog.
var Version = "dev"
