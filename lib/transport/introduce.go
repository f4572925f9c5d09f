package transport

import "golang.org/x/sys/unix"

// introduce pings the peer once, for the address resolution that comes before where
// this kernel does not know the peer yet, as after a boot and a lost carrier: it tells
// the peer's kernel, or that of a router between, where this node is. A
// master that advertises to a node without power asks for it by ARP or neighbour
// solicitations once a second, and no advert leaves in between; a node that
// returns would hear nobody within the down interval of a short interval, and take
// the address from a master that is well. Whether the ping is answered, or can be
// sent at all, changes nothing else.
func (c *Conn) introduce() {
	const request4, request6 = 8, 128 // RFC 792, RFC 4443 section 4.1
	family, proto, request := unix.AF_INET, unix.IPPROTO_ICMP, []byte{request4, 0, 0xff - request4, 0xff, 0, 0, 0, 0}
	if c.v6() {
		family, proto, request = unix.AF_INET6, unix.IPPROTO_ICMPV6, []byte{request6, 0, 0, 0, 0, 0, 0, 0} // the sum is the kernel's
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if unix.BindToDevice(fd, c.cfg.Interface) == nil && unix.Bind(fd, c.sockaddr(c.cfg.Local, 0)) == nil {
		unix.Sendto(fd, request, unix.MSG_DONTWAIT, c.sockaddr(c.cfg.Peer, 0))
	}
}
