from pathlib import Path

from unified_embedding.serving.local_server import free_ports


def test_free_ports_are_free_for_a_second_start_too() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    # Linux gives those from the first one on to connections and to whoever asks for any port.
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert first <= 20_000 or max(ports) < first
    assert min(ports) >= 1024
