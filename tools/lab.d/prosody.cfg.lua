-- Prosody 0.12 on loopback, all its state under @DIR@.  @NAMES@ are filled in by tools/lab.
run_as_root = @ROOT@           -- it refuses root otherwise; in a container there is nobody else
daemonize = false
pidfile = "@DIR@/prosody.pid"
data_path = "@DIR@/data"
certificates = "@DIR@"
log = { { levels = { min = "info" }, to = "console" } }
interfaces = { "127.0.0.1" }
local_interfaces = { "127.0.0.1" }
c2s_ports = { @STARTTLS@ }
c2s_direct_tls_ports = { @TLS@ }
component_ports = { @COMPONENT@ }
component_interfaces = { "127.0.0.1" }
s2s_ports = {}
http_ports = {}
https_ports = {}
modules_enabled = {
  "roster", "saslauth", "tls", "disco", "carbons", "pep", "smacks", "mam", "ping", "blocklist", "vcard4",
  "vcard_legacy", "bookmarks", "time", "version", "posix", "csi_simple",
}
modules_disabled = { "s2s" }
authentication = "internal_hashed"   -- offers SCRAM-SHA-1 and PLAIN
storage = "internal"
default_archive_policy = true
archive_expires_after = "1d"
smacks_hibernation_time = @HIBERNATION@
c2s_require_encryption = true
allow_registration = false
ssl = { key = "@DIR@/key.pem", certificate = "@DIR@/cert.pem" }
-- no mod_limits: the stock configuration throttles clients to 10 kB/s

VirtualHost "localhost"

Component "muc.localhost" "muc"
  modules_enabled = { "muc_mam" }
  muc_log_by_default = true
  restrict_room_creation = false
  muc_room_default_public = true
  muc_tombstones = false

Component "bridge.localhost"
  component_secret = "s3cret"
  validate_from_addresses = true
