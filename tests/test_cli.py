def test_smoke(run, tiny_folder, tmp_path):
    log = []
    (tmp_path / "a.txt").write_text("The cat is called Muck.\n")
    for args, stdin in [
        (["write", "cat", tmp_path / "a.txt", "--model", tiny_folder], b""),
        (["write", "cat"], b"More text\r\n"),
        (["ask", "cat", "What?", "--max-tokens", "5"], b""),
        (["ask", "cat", "What?", "--max-tokens", "5", "--json"], b""),
        (["chat", "talk", "--max-tokens", "5", "--model", tiny_folder], b"hello\nmore\n/exit\n"),
        (["list"], b""),
        (["show", "cat"], b""),
        (["fork", "cat", "dog"], b""),
        (["forget", "dog", "--yes"], b""),
        (["forget", "cat"], b""),
        (["write", "cat", "-o", "rows=5"], b"a"),
        (["write", "cat", "--memory", "windw"], b"a"),
        (["write", "cat2", "--memory", "windw"], b"a"),
        (["write", "cat2", "--memory", "window", "-o", "recnt=3", "--model", tiny_folder], b"a"),
        (["write", "cat2", "--memory", "window", "-o", "recent=x", "--model", tiny_folder], b"a"),
        (["ask", "ct", "a"], b""),
        (["ask", "a/b", "a"], b""),
        (["ask", "cat", "\udcff"], b""),
        (["ask", "cat", "a", "--temperature", "nan"], b""),
        (["ask", "cat", "zażółć\0 x", "--max-tokens", "3"], b""),
    ]:
        r = run(*args, stdin=stdin)
        log.append((args[:3], r.code, r.out, r.err))
    import pprint

    open("/tmp/log.txt", "w").write("\n".join(f"{a} {c}\n  {o}\n  ERR {e}" for a, c, o, e in log))
