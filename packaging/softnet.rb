# A Homebrew formula for a tap of your own: HOMEBREW-TAP/Formula/softnet.rb. `version`, `url` and `sha256` are those of a
# release archive that holds the universal program that `cargo xtask macos` makes (target/macos/softnet).
#
# Homebrew's Tart depends on openai/tools/softnet, another program of the same name. Where Tart comes from Homebrew, this
# formula cannot be installed beside it: `brew unlink softnet`, and install the program by hand (docs/macos.md).
class Softnet < Formula
  desc "Userspace packet filter for virtual machines"
  homepage "https://github.com/OWNER/softnet"
  url "https://github.com/OWNER/softnet/releases/download/v0.1.0/softnet-macos-universal.tar.gz"
  version "0.1.0"
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license any_of: ["Apache-2.0", "MIT"]

  depends_on macos: :ventura

  conflicts_with "openai/tools/softnet", because: "both install a program named softnet"

  def install
    bin.install "softnet"
  end

  def caveats
    <<~EOS
      On macOS 15 and older, vmnet needs root; on 26 and newer, only root can shorten DHCP leases from a day to ten
      minutes. Either let Softnet have it by its set-user-ID bit:
        sudo chown root #{opt_bin}/softnet && sudo chmod u+s #{opt_bin}/softnet
      or allow it through sudo without a password, with a line in /private/etc/sudoers.d/softnet:
        %staff ALL=(root) NOPASSWD: #{opt_bin}/softnet
      An upgrade of the formula takes the set-user-ID bit away again.
    EOS
  end

  test do
    assert_match "softnet #{version}", shell_output("#{bin}/softnet --version")
  end
end
