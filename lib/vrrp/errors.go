package vrrp

import (
	"errors"
	"fmt"
)

// Why a message is refused. Unmarshal looks for them in this order, except that
// ErrShort is also a message that ends before its last address.
var (
	ErrShort    = errors.New("vrrp: message too short")
	ErrVersion  = errors.New("vrrp: not VRRP version 3")
	ErrType     = errors.New("vrrp: not an advertisement")
	ErrCount    = errors.New("vrrp: want 1 to 255 virtual addresses")
	ErrLength   = errors.New("vrrp: what follows the last address is not an authentication trailer")
	ErrChecksum = errors.New("vrrp: wrong checksum, with and without pseudo-header")
	ErrVRID     = errors.New("vrrp: want a virtual router ID of 1 to 255")
	ErrInterval = errors.New("vrrp: want an advertisement interval of 10ms to 40.95s in steps of 10ms")

	// ErrFamily is Append's alone.
	ErrFamily = errors.New("vrrp: want addresses of one family")

	// ErrVRRPv2 and ErrCARP wrap ErrVersion: two neighbours that share IP
	// protocol 112, and that an admin can do something about.
	ErrVRRPv2 = fmt.Errorf("%w: VRRPv2, set version 3 on that router", ErrVersion)
	ErrCARP   = fmt.Errorf("%w: CARP, as ucarp and version 2.0 of the cluster service speak it", ErrVersion)
)

// reasons is searched from the top, so what wraps comes before what it wraps.
var reasons = []struct {
	err   error
	label string
}{
	{ErrShort, "short"},
	{ErrVRRPv2, "vrrpv2"},
	{ErrCARP, "carp"},
	{ErrVersion, "bad-version"},
	{ErrType, "bad-type"},
	{ErrCount, "bad-count"},
	{ErrLength, "bad-length"},
	{ErrChecksum, "bad-checksum"},
	{ErrVRID, "bad-vrid"},
	{ErrInterval, "bad-interval"},
	{ErrFamily, "bad-family"},
}

// Reason is a short, stable label for an error of this package, for counters:
// "bad-checksum". It is "" for nil and "other" for somebody else's error.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.label
		}
	}
	return "other"
}

// foreign names the neighbour that sent a message of another version. CARP and
// VRRPv2 start with the same byte; a CARP message is 36 bytes with a 7 where
// VRRPv2 counts addresses, and seven of those would need 44.
func foreign(payload []byte) error {
	const (
		carpLen     = 36
		carpAuthLen = 7
	)
	switch {
	case payload[0]>>4 != 2:
		return ErrVersion
	case len(payload) == carpLen && payload[3] == carpAuthLen:
		return ErrCARP
	}
	return ErrVRRPv2
}
